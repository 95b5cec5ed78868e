"""Classes and roles of an image folder: a sub-folder per class, also below train/, val/, test/."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeopt.data.folders.listing import SUFFIXES, Picture, class_folders, list_pictures

logger = logging.getLogger(__name__)

FOLDER_PREFIX = "folder:"
ROLE_FOLDERS = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
SHOWN = 10  # names in a message


def folder_classes(path: str) -> list[str]:
    """Names of the classes of an image folder, in alphabetical order, without listing pictures.

    Raises ``ValueError`` when there is no such folder, or only some of the three roles.
    """
    root = image_root(path)
    return class_folders(next(iter(role_folders(root).values()), root))


def image_root(path: str) -> Path:
    """Return the folder that a path names; ``ValueError`` when there is none."""
    if not path:
        raise ValueError(f"{FOLDER_PREFIX} lacks its path; write {FOLDER_PREFIX}<path>")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"{FOLDER_PREFIX}{root} is not a directory; allowed: one with a sub-folder per class"
        )
    return root


def list_roles(root: Path) -> tuple[list[str], dict[str, list[Picture]]]:
    """Names of the classes, and the pictures by role; without roles of its own, all are of "".

    Raises ``ValueError`` for fewer than two classes and for a class that a role has no picture of.
    """
    folders = role_folders(root) or {"": root}
    class_names = sorted({name for f in folders.values() for name in class_folders(f)})
    found, left_out = {}, []
    for role, folder in folders.items():
        found[role], others = list_pictures(folder, root=root)
        left_out += others
    _log_left_out(sorted(left_out), root=root)
    _require_classes(class_names, found, root=root)
    return class_names, found


def role_folders(root: Path) -> dict[str, Path]:
    """Folders of the three roles; none where there is at most one of these names.

    Raises ``ValueError`` when there are only two, or several of one role.
    """
    found = {
        role: [root / name for name in names if (root / name).is_dir()]
        for role, names in ROLE_FOLDERS.items()
    }
    if sum(map(bool, found.values())) < 2:
        return {}
    if wrong := [role for role, folders in found.items() if len(folders) != 1]:
        names = sorted(folder.name for folders in found.values() for folder in folders)
        raise ValueError(
            f"{FOLDER_PREFIX}{root} has {', '.join(names)}, and so not one folder for "
            f"{' and '.join(wrong)}; allowed: train/, val/ (or valid/, validation/) and test/, or "
            "one sub-folder per class"
        )
    return {role: folder for role, (folder,) in found.items()}


def _log_left_out(left_out: Sequence[str], *, root: Path) -> None:
    if not left_out:
        return
    kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in left_out)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    more = ", ..." if len(left_out) > SHOWN else ""
    logger.warning(
        "%s: %d files are left out (%s), which are not pictures (%s): %s%s",
        root,
        len(left_out),
        counts,
        " ".join(SUFFIXES),
        ", ".join(left_out[:SHOWN]),
        more,
    )


def _require_classes(
    class_names: Sequence[str], pictures: Mapping[str, Sequence[Picture]], *, root: Path
) -> None:
    """Refuse fewer than two classes, and a class without pictures in any of the roles."""
    if not any(pictures.values()):
        suffixes = " ".join(SUFFIXES)
        raise ValueError(
            f"{FOLDER_PREFIX}{root} has no images to offer; allowed: <class>/ with {suffixes}"
        )
    if len(class_names) < 2:
        raise ValueError(
            f"{FOLDER_PREFIX}{root} has one class, {class_names[0]!r}; at least 2 are needed"
        )
    for role, listed in pictures.items():
        if missing := sorted(set(class_names) - {picture.class_name for picture in listed}):
            where = f" in its {role} images" if role else ""
            raise ValueError(
                f"{FOLDER_PREFIX}{root} has no images to offer{where} of {', '.join(missing)}; "
                "allowed: every class has some" + (" in every role" if role else "")
            )
