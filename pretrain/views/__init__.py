"""Random views of images, in batches."""

from pretrain.views.loader import ShardedViews, ViewLoader, too_few_images

__all__ = ["ShardedViews", "ViewLoader", "too_few_images"]
