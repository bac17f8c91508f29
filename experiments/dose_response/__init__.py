"""Dose and response: at which speed of the critic does value pretraining become necessary?"""
