"""The losses on embeddings that whitening is compared with: what holds for one holds for all."""

from pretrain.config.methods import BarlowTwinsConfig, SimCLRConfig

COMPARED = {
    "barlow-twins": BarlowTwinsConfig(name="barlow-twins", redundancy_weight=0.05),
    "simclr": SimCLRConfig(name="simclr", temperature=0.2),
}
