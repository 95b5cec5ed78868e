"""Say what a picture shows, with the model in this folder.

python predict.py picture.png prints the classes and their shares, most likely first;
python predict.py --self-test proves that the model computes here what it did where it was made.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

sys.dont_write_bytecode = True  # the folder stays as it was shipped
HERE = Path(__file__).resolve().parent


def install(error: ModuleNotFoundError) -> NoReturn:
    """End, naming the package that is missing."""
    sys.exit(f"{error.name} is not installed: python -m pip install -r requirements.txt")


try:
    import numpy as np

    from edgeopt.agent.pixels import converted
    from edgeopt.agent.session import Artifact, Session, open_session, session_class
    from edgeopt.data.images import read_picture
    from edgeopt.system.files import file_sha256
    from edgeopt.system.upstream import RuntimeUnavailable
except ModuleNotFoundError as error:
    install(error)


def main() -> None:
    """Classify a picture, or test the model; one line and exit code 1 where that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("picture", nargs="?", type=Path)
    what.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    try:
        check_files()
        model = Model()
        lines = model.self_test() if options.self_test else model.answer(options.picture)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(" ".join(str(error).split()))
    sys.stdout.write("\n".join([*lines, ""]))


def check_files() -> None:
    """Raise ``ValueError`` naming the first file that is not the one that was shipped."""
    for line in (HERE / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        shipped, name = line.split(maxsplit=1)
        if (found := file_sha256(HERE / name)) != shipped:
            raise ValueError(f"{name} was changed: its SHA-256 is {found}, shipped was {shipped}")


class Model:
    """The model as model.json describes it, loaded into its runtime."""

    def __init__(self) -> None:
        self.facts = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
        self.session = self._open(**self.facts["artifact"])

    def _open(self, file: str, input_shape: list[int], **facts: str | int) -> Session:
        place = self.facts["session"]
        try:
            session_class(place)
        except RuntimeUnavailable as error:
            install(error.__cause__)
        artifact = Artifact(path=HERE / file, input_shape=tuple(input_shape), **facts)
        return open_session(artifact, place=place)

    def images(self, picture: Path) -> np.ndarray:
        """Float32 [1, C, H, W] of a picture, prepared as those that the model was trained on."""
        how = self.facts["preprocessing"]
        pixels, _ = read_picture(picture, SimpleNamespace(**how))
        return converted(pixels[None], **{name: how[name] for name in ("channels", "mean", "std")})

    def logits(self, picture: Path) -> np.ndarray:
        """Logits [classes] of a picture."""
        return self.session.score(self.images(picture))[0]

    def answer(self, picture: Path) -> list[str]:
        """Classes with their shares, the softmax of the logits, most likely first."""
        logits = self.logits(picture).astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        names = self.facts["class_names"]
        return [f"{shares[i]:7.2%}  {names[i]}" for i in np.argsort(-shares, kind="stable")]

    def self_test(self) -> list[str]:
        """Raise ``ValueError`` naming the first picture whose logits are not those stored."""
        stored = np.load(HERE / "self_test" / "logits.npy")
        pictures = [HERE / "self_test" / f"{number:02}.png" for number in range(len(stored))]
        found = np.stack([self.logits(picture) for picture in pictures])
        gaps = np.abs(found - stored)
        allowed = self.facts["tolerance"] * (1 + np.abs(stored).max(axis=1))
        wrong = ~(gaps.max(axis=1) <= allowed)
        if wrong.any():
            first = wrong.argmax()
            worst = gaps[first].argmax()
            raise ValueError(
                f"self-test failed at {pictures[first].name}: the logit of "
                f"{self.facts['class_names'][worst]} is {found[first, worst]:.6g}, "
                f"stored is {stored[first, worst]:.6g}"
            )
        how = f"within {gaps.max():.2g}" if gaps.any() else "bit for bit"
        return [f"self-test passed: the logits of {len(stored)} pictures are those stored, {how}"]


if __name__ == "__main__":
    main()
