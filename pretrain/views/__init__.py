"""Random views of images, in batches."""

from pretrain.views.loader import ShardedViews, ViewLoader, loader_faults, too_few_images

__all__ = ["ShardedViews", "ViewLoader", "loader_faults", "too_few_images"]
