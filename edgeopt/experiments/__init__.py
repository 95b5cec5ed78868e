"""Trainings, candidates, the recovery of int8, the sweep, its comparisons and other devices."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "trainings.recipes": ["Recipe", "pruned_recipes", "searched_recipe", "widths_label"],
        "trainings.plan": ["Schedule", "Training", "TrainingPlan"],
        "trainings.networks": ["train_networks"],
        "trainings.pruning_results": ["accuracy_table", "filter_norms", "size_table"],
        "candidates.prepared": ["Prepared", "preparation_digest"],
        "candidates.candidate": ["Candidate", "CandidateSpec", "artifact_of", "grid"],
        "candidates.preparing": ["prepare_candidates"],
        "candidates.floor": ["floor_images", "prepare_floors"],
        "candidates.measuring": ["measure_candidates", "measured_energy_table"],
        "candidates.scaling": ["measure_scaling", "runtime_ms"],
        "candidates.seeds": ["answers_of", "recall_table", "score", "with_test"],
        "recovery.diagnosis": ["diagnose"],
        "recovery.recover": ["recover_int8"],
        "recovery.repairs": ["recover_collapsed", "recovery_notes"],
        "sweep": [
            "Target",
            "candidate_table",
            "pareto_frontier",
            "precision_variant",
            "run_sweep",
            "sweep_table",
            "train_model",
        ],
        "comparison": ["answer_sections", "compare_on_test", "int8_cost"],
        "on_device": [
            "compare_devices",
            "decide_elsewhere",
            "device_sweep",
            "device_tables",
            "host_answers",
        ],
    },
)
