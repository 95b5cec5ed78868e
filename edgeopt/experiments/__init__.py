"""Trainings, candidates, the sweep, and the recovery of int8."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "candidates": ["Candidate", "CandidateSpec", "artifact_of", "grid"],
        "comparison": ["answer_sections", "compare_on_test", "int8_cost"],
        "diagnosis": ["diagnose"],
        "floor": ["floor_images", "prepare_floors"],
        "measuring": ["measure_candidates", "measured_energy_table"],
        "on_device": [
            "compare_devices",
            "decide_elsewhere",
            "device_sweep",
            "device_tables",
            "host_answers",
        ],
        "prepared": ["Prepared", "preparation_digest"],
        "preparing": ["prepare_candidates"],
        "pruning_results": ["accuracy_table", "filter_norms", "size_table"],
        "recipes": ["Recipe", "pruned_recipes", "searched_recipe", "widths_label"],
        "recovery": ["recover_int8"],
        "repairs": ["recover_collapsed", "recovery_notes"],
        "scaling": ["measure_scaling", "runtime_ms"],
        "seeds": ["answers_of", "recall_table", "score", "with_test"],
        "sweep": [
            "Target",
            "candidate_table",
            "pareto_frontier",
            "precision_variant",
            "run_sweep",
            "sweep_table",
            "train_model",
        ],
        "training_plan": ["Schedule", "Training", "TrainingPlan"],
        "trainings": ["train_networks"],
    },
)
