# %% [markdown]
# # What changed between two runs, and what beyond noise?
#
# The second run is judged against the first, candidate by candidate. A change is named only where two
# intervals do not overlap, and for latency where it is also above what two runs of the same code differ by,
# in milliseconds and relative to the reference kernel: what that kernel shares is the machine's change.
# What cannot be compared, because the images or the machine differ, is shown and not judged.

# %% tags=["parameters", "remove-input"]
run_a = "default"
run_b = "quick"

# %% tags=["remove-input"]
from IPython.display import HTML

from edgeopt.reports import compare_runs, find_run
from edgeopt.study import table_html, use_style

# %% tags=["remove-input"]
found = compare_runs(find_run(run_a), find_run(run_b))
use_style()
print("\n".join(found.warnings) or "Same images, same machine: everything is judged.")

# %% [markdown]
# ## The pick
#
# Each run's own. These verdicts are what `make compare` with `FAIL=1` goes by.

# %% tags=["remove-input"]
names = {"number": "Number", "fact": "Fact", "first": run_a, "second": run_b, "verdict": "Verdict"}
found.pick.rename(columns=names).rename_axis(columns="as they are")

# %% [markdown]
# ## All candidates
#
# Accuracies are in %, latencies those of the median call; the ratio is the second over the first.

# %% tags=["remove-input"]
found.candidates["verdict"].value_counts(sort=False).rename("candidates").to_frame()

# %% tags=["remove-input"]
HTML(f'<div class="compared">{table_html(found.table(run_a, run_b))}</div>')

# %% [markdown]
# ## What changed in the making

# %% tags=["remove-input"]
changes = found.changes.rename(columns=names).rename_axis(columns="as they are")
HTML(
    f'<div class="compared">{table_html(changes)}</div>'
    if len(changes)
    else "<p>Nothing: data, code, versions and machine are the same.</p>"
)

# %% [markdown]
# ## Conclusion

# %% tags=["remove-input"]
worse = ", ".join(found.regressions)
print(f"Of the pick got worse beyond noise: {worse or 'nothing that could be judged'}.")
