"""The losses on embeddings that whitening is compared with: what holds for one holds for all."""

from pretrain.config.methods import BarlowTwinsConfig, INTLConfig, SimCLRConfig, VICRegConfig

COMPARED = {
    "barlow-twins": BarlowTwinsConfig(name="barlow-twins", redundancy_weight=0.05),
    "intl": INTLConfig(name="intl"),
    "intl over the batch": INTLConfig(name="intl", over="batch"),
    "simclr": SimCLRConfig(name="simclr", temperature=0.2),
    "vicreg": VICRegConfig(name="vicreg"),
}
BELOW_ZERO: set[str] = set()  # of these, the losses that are not bounded by 0
