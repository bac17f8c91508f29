"""Count the solutions: is a critic worth having when errors show long before the reward?"""
