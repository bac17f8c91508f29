"""Experiments: ablation, delayed choice, a pretrained model."""
