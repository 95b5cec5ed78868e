"""`make bench`: speed, memory and quality, printed as ratios in one run on an idle machine."""

import argparse
import subprocess
import sys
from functools import partial

from benchmarks import backbones, cluster, data, latency, pages, quality, runtimes, specimens, study

BENCHMARKS = {
    "harness": latency.harness_overhead,
    "plain-api": latency.over_the_plain_api,
    "equal-files": latency.equal_files,
    "usual-way": study.speed_against_the_usual_way,
    "usual-accuracy": study.accuracy_against_the_usual_way,
    "repeatability": latency.repeated_measurement,
    "small-cnn": runtimes.small_cnn,
    "mobilenet-v3-small": partial(runtimes.backbone, "mobilenet_v3_small", goal=1.4),
    "mobilenet-v3-large": partial(runtimes.backbone, "mobilenet_v3_large", goal=1.3),
    "quality": quality.default_run,
    "backbones": backbones.backbones,
    "pictures": data.pictures,
    "many-pictures": data.many_pictures,
    "cluster": cluster.cluster,
    "worker-kills": cluster.worker_kills,
    "specimens": specimens.specimens,
    **{f"specimens-{name}": partial(specimens.recovered, name) for name in specimens.NETWORKS},
    "index-page": pages.index_page,
    "filter": pages.filter_time,
    "five-seeds": pages.five_seeds,
}
# Minutes, and much longer for the specimens of a deep network.
ON_REQUEST = {
    "five-seeds",
    "backbones",
    "many-pictures",
    *(f"specimens-{name}" for name in specimens.NETWORKS),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or [n for n in BENCHMARKS if n not in ON_REQUEST]
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; allowed: {', '.join(BENCHMARKS)}")
    if len(names) > 1:
        # Each in a process of its own, so that peak memory and threads are its own.
        for name in names:
            subprocess.run([sys.executable, "-m", "benchmarks", name], check=True)
        return
    sys.stdout.write(f"{names[0]}\n")
    for line in BENCHMARKS[names[0]]():
        sys.stdout.write(f"  {line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
