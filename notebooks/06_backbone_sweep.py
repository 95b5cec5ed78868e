# %% [markdown]
# # 6. Which network should ship, in which precision, and what does INT8 cost it?
#
# Networks built for small devices promise accuracy for few operations; int8 promises a quarter of the
# bytes. What neither promises is that the two go together. This notebook measures nothing: it reads what
# notebooks 1 to 5 wrote for every network of the run and sets the networks side by side.

# %% tags=["parameters"]
run = "quick"

# %%
import pandas as pd
from IPython.display import display

from edgeopt import plots
from edgeopt.config import ExperimentConfig
from edgeopt.decision import pareto_frontier
from edgeopt.experiments import answer_sections, int8_cost
from edgeopt.study import open_run, use_style

# %%
config = ExperimentConfig.from_namespace(globals())
folder = open_run(config.run)
use_style()

# %% tags=["nbval-ignore-output"]
sweep = folder.read_sweep()
recalls = folder.read_table("per_class.csv")
decision = folder.read_json("summary.json")
pruning = folder.read_table("pruning_accuracy.csv")
ran = sweep[sweep["status"] == "ok"]
print(
    f"Run {config.run}: {len(ran)} of {len(sweep)} candidates of {sweep['model'].nunique()} network(s) ran"
)

# %% [markdown]
# ## The networks
#
# Each in fp32, unpruned, in the fastest of the runtimes. A network that is slower, larger and less
# accurate than another one has nothing to offer on this device.

# %% tags=["nbval-ignore-output"]
shown = ["candidate", "accuracy", "macro_f1", "latency_p50_ms", "memory_mb", "macs", "accepted"]
full = ran[(ran["pruning_level"] == 0) & (ran["precision"] == "fp32")]
fastest = full.loc[full.groupby("model", sort=False)["latency_p50_ms"].idxmin()]
fastest[shown]

# %% tags=["nbval-ignore-output"]
smallest = ran.groupby(["model", "pruning_level"], sort=False)[
    ["latency_p50_ms", "memory_mb"]
].min()
best = ran.groupby(["model", "pruning_level"], sort=False)["accuracy"].max()
smallest.join(best)

# %% [markdown]
# Above: for each network and level the least latency, the least weights and the best accuracy over all
# runtimes and precisions, not of one candidate. Below, what pruning costs beside training the same
# small network from new weights.

# %% tags=["nbval-ignore-output"]
shares = pruning.pivot_table("accuracy", ["model", "pruning_level"], "recipe", sort=False)
shares.mul(100).add_suffix(" (%)").rename_axis(columns=None)

# %% [markdown]
# ## What is the frontier of accuracy, latency and size?
#
# Budgets first: what does not fit the active budget on weights cannot be chosen, and is hollow in the
# figure. Of the rest, a candidate is on the frontier when none is both faster (or smaller) and at least
# as accurate.

# %% tags=["nbval-ignore-output"]
frontier = pareto_frontier(sweep, "latency_p50_ms")
frontier[[*shown[:-1], "frontier_probability"]]

# %% tags=["nbval-ignore-output"]
by_size = pareto_frontier(sweep, "artifact_bytes")
by_size[[*shown[:-1], "artifact_bytes"]]

# %% tags=["nbval-ignore-output"]
pick = decision["pick"] and decision["pick"]["candidate"]
refused = [row["candidate"] for row in decision["rejected"]]
ax = plots.frontier(sweep, pick=pick, baseline=decision["baseline"]["candidate"], refused=refused)
alt = f"Validation accuracy against median latency of all networks. {decision['reason']}"
folder.save_figure("frontier_networks", ax, alt=alt, numbers=sweep[shown])

# %% [markdown]
# ## What does INT8 cost each network?
#
# Every int8 variant minus the fp32 variant of the same network in the same runtime, the worst first.
# `file_ratio` and `speedup` are fp32 over int8: above 1, int8 is smaller or faster. Below 1 it is not,
# whatever one expects of fewer bits.

# %% tags=["nbval-ignore-output"]
cost = folder.write_table("int8_cost.csv", int8_cost(sweep))
numbers = ["accuracy_change", "macro_f1_change", "file_ratio", "speedup"]
cost.sort_values("accuracy_change").set_index("candidate")[numbers]

# %% [markdown]
# ## And each class?
#
# In the static int8 variant of each unpruned network that holds best: the change of every class's recall
# in points, and the network on which some class pays most.

# %% tags=["nbval-ignore-output"]
held = cost[(cost["precision"] == "int8") & (cost["pruning_level"] == 0)]
held = held.loc[held.groupby("model", sort=False)["accuracy_change"].idxmax()]
recall = recalls.pivot_table("recall", "class_name", "candidate", sort=False)
paid = pd.DataFrame({r.model: recall[r.candidate] - recall[r.parent] for r in held.itertuples()})
paid.rename_axis(columns="model").mul(100).round(2)

# %% tags=["nbval-ignore-output"]
if not paid.empty:
    model = paid.min().idxmin()
    row = held.set_index("model").loc[model]
    change = recall[[row["parent"], row["candidate"]]].set_axis(["before", "after"], axis=1)
    ax = plots.per_class_change(change.reset_index())
    alt = f"Recall of each class before and after int8: {row['candidate']}."
    display(folder.save_figure("int8_per_class", ax, alt=alt, numbers=change.reset_index()))

# %% [markdown]
# ## Which to ship?
#
# The choice is notebook 4's, on validation images, over all networks together: losses are counted from
# the most accurate network in fp32, so that what a smaller network gives up counts as much as what fewer
# bits do. Here it stands with its reason, and with the answers above in words, computed from the tables.

# %% tags=["nbval-ignore-output"]
sections = answer_sections(frontier, held=held, paid=paid, decision=decision)
print("\n\n".join(sections))

# %%
folder.write_table("results.csv", sweep)
tables = {
    "The frontier of accuracy against latency": frontier,
    "The frontier of accuracy against size": by_size,
    "All candidates, fastest first": sweep.sort_values("latency_p50_ms"),
}
columns = [*shown, "artifact_bytes", "frontier_probability", "remedy", "status"]
parts = ["# Networks: accuracy, latency and size", *sections]
for heading, table in tables.items():
    parts += [f"## {heading}", table[columns].to_markdown(index=False, floatfmt=".4g")]
_ = folder.write_bytes("pareto.md", "\n\n".join([*parts, ""]).encode())

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
print(decision["reason"])
print("Runner-up:", decision["what_it_would_take"])
