"""Latents of transcoders, which read before the MLP and predict what it adds: `--source transcoder`."""

from neuroexplain.sources._latents import Latents

KIND = Latents("transcoder")
