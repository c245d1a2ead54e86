"""Latents of sparse autoencoders: `--source sae --dictionary FOLDER`."""

from neuroexplain.sources._latents import Latents

KIND = Latents("sae")
