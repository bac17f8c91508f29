"""What a Trainer takes: VC-PPO, cold start and reward model, and their collaborators."""
