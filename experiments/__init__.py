"""The evidence: ablation, delayed choice, a pretrained model."""
