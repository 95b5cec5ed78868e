"""Images in four roles, as each network expects them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "decoded": ["PixelFile"],
        "sets.embedded": ["rebuild_embedded"],
        "folders.folder": ["FOLDER_PREFIX", "picture_shape"],
        "loading": ["build_loaders", "class_count", "image_counts", "load_splits"],
        "preprocessing": ["INTERPOLATIONS", "RESIZES", "Preprocessing", "per_channel"],
        "splits": ["ROLE_NAMES", "SPLIT_BY_SEED", "Split", "Splits", "in_batches", "shared_images"],
    },
)
