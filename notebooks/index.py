# %% [markdown]
# # Which model to ship?

# %% tags=["parameters", "remove-input"]
run = "quick"

# %% tags=["remove-input"]
from IPython.display import HTML
from itables import init_notebook_mode

from edgeopt.reports import (
    all_files,
    decision_card,
    explorer,
    hand_off,
    parameter_table,
    provenance_table,
    read_results,
    role_table,
    saved_figure,
    warnings_box,
)
from edgeopt.study import open_run, table_html, use_style

# %% tags=["remove-input"]
folder = open_run(run)
results = read_results(folder)
use_style()

# %% tags=["remove-input"]
warnings_box(results)

# %% tags=["remove-input"]
decision_card(results)

# %% [markdown]
# ## The hand-off

# %% tags=["remove-input"]
hand_off(results)

# %% [markdown]
# ## What would change it
#
# The choice is the rule's, applied to these numbers. Other numbers would have made another one win.

# %% tags=["remove-input"]
print("\n\n".join(results.what_would_change()) or "Nothing was chosen.")

# %% [markdown]
# ## What it is chosen over
#
# All were measured in the same rounds. Accuracies are means over the seeds.

# %% tags=["remove-input"]
role_table(results)

# %% [markdown]
# Image by image: what the baseline gets right, and the pick (without one, what came nearest) does not.

# %% tags=["remove-input"]
saved_figure(folder, "gallery")

# %% [markdown]
# ## All candidates
#
# Each point is a model that could be shipped: further left costs less, further up is better. The dotted line
# joins those within the memory budget that no other beats on both axes; those over it are hollow. A click
# on a point shows its row, a click on a row its point; what is chosen here stays in the page's address.

# %% tags=["remove-input"]
results.funnel()

# %% tags=["remove-input"]
init_notebook_mode(connected=False)
explorer(results)

# %% [markdown]
# *Standing* is where the rule put a candidate, *decided by* what decided it. All columns are in
# `sweep_results.csv`, linked at the end of chapter 4.
#
# ## The rules
#
# What is refused is not chosen, however fast. Of the rest the good come before the acceptable, what is
# settled before what is not, then the fastest wins; where several are as fast, the one with the smallest
# weights.

# %% tags=["remove-input"]
results.rules()

# %% [markdown]
# ## What is inside the file
#
# The operators that the runtime executes, as its own profiler timed them. Some profilers count whole
# microseconds: there 0 is less than one.

# %% tags=["remove-input"]
results.operators()

# %% [markdown]
# ## Where these numbers come from

# %% tags=["remove-input"]
provenance_table(results)

# %% tags=["remove-input"]
HTML(f"<details><summary>Parameters</summary>{table_html(parameter_table(results))}</details>")

# %% [markdown]
# `manifest.json` lists the SHA-256 of every file of the run; `make verify` checks them.

# %% tags=["remove-input"]
HTML(all_files(folder))
