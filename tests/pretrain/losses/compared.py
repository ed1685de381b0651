"""The losses on embeddings that whitening is compared with: what holds for one holds for all."""

from pretrain.config.methods import SimCLRConfig

COMPARED = {
    "simclr": SimCLRConfig(name="simclr", temperature=0.2),
}
