"""Classification by a frozen encoder: k nearest neighbours and linear classifiers."""
