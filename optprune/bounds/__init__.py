"""Theorems as functions of numbers; each names its proof."""
