"""Images to backbone: self-supervised pretraining of ResNets with whitening losses."""
