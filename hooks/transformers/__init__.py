"""Capture for transformers >= 5."""

from moe_probe.hooks.transformers.capture import TransformersCapture

__all__ = ["TransformersCapture"]
