"""Trainings, candidates, the sweep, and the recovery of int8."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "candidates": ["Candidate", "artifact_of", "grid", "prepare_candidates", "score"],
        "comparison": [
            "answer_sections",
            "class_changes",
            "compare_on_test",
            "int8_cost",
            "markdown_page",
        ],
        "diagnosis": ["diagnose"],
        "measuring": ["measure_candidates", "measured_energy_table", "peak_rss_table"],
        "prepared": ["Prepared"],
        "pruning_results": ["accuracy_table", "filter_norms", "size_table", "with_intervals"],
        "recovery": ["DIAGNOSIS_IMAGES", "recover_candidate", "recover_collapsed", "recover_int8"],
        "sweep": [
            "Target",
            "answers_of",
            "candidate_table",
            "mean_macro_f1",
            "pareto_frontier",
            "precision_variant",
            "recall_table",
            "run_sweep",
            "sweep_table",
            "train_model",
            "with_seeds",
            "with_test",
        ],
        "trainings": [
            "Recipe",
            "Schedule",
            "Training",
            "TrainingPlan",
            "pruned_recipes",
            "train_networks",
        ],
    },
)
