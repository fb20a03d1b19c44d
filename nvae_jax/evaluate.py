"""A full pass over a split: NELBO, and the importance-weighted bound (Burda et al. 2016)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from nvae_jax import distributed, reporting, run_directory, sharding, steps
from nvae_jax.data import pipeline
from nvae_jax.likelihoods import bits_per_dim


def evaluate(
    model, likelihood, variables, batches, *, num_iw_samples=1, seed=0, mesh=None, progress=None
):
    """Bounds on -log p(x), averaged over every example once.

    The encoder runs once a batch; posterior draws are taken one after the other, so that memory
    does not grow with their number.

    Args:
      model: an `NVAE`.
      likelihood: maps logits to an image distribution.
      variables: the model's variables; running statistics are used.
      batches: of {"image": (B, H, W, C) in [0, 1], "mask": (B,)}.
      num_iw_samples: K, posterior draws per image. The NELBO averages over the same draws.
      seed: of the draws.
      mesh: devices that share each batch; None uses one. The batches are this host's parts.
      progress: called with the number of examples done so far.

    Returns:
      a dict in nats per image: `nelbo`, `reconstruction`, `kl`, `kl_group` (a list), `neg_log_p`
      = -log mean_k p(x, z_k) / q(z_k | x), the last and the NELBO also in bits per dimension.

    Raises:
      ValueError: K is less than 1, or there is no example.
    """
    if num_iw_samples < 1:
        raise ValueError(f"num_iw_samples must be at least 1, not {num_iw_samples}")
    mesh = mesh or sharding.make_mesh(sharding.MeshSettings(), jax.local_devices()[:1])
    everywhere = sharding.replicated(mesh)
    encode = jax.jit(steps.make_encode_step(model))
    bound = jax.jit(steps.make_bound_step(model, likelihood), out_shardings=everywhere)
    gather = jax.jit(lambda mask: mask, out_shardings=everywhere)
    key, sums, count = jax.random.key(seed), {}, 0
    for index, batch in enumerate(batches):
        batch_key = jax.random.fold_in(key, index)
        images = sharding.to_devices(mesh, batch["image"])
        terms = _average_draws(encode, bound, variables, images, batch_key, num_iw_samples)
        mask = np.asarray(gather(sharding.to_devices(mesh, batch["mask"])))
        for name, value in terms.items():
            # Sums over a split are taken in float64: float32 would lose digits.
            sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)[mask].sum(0)
        count += int(mask.sum())
        if progress:
            progress(count)
    if not count:
        raise ValueError("there is no example to evaluate")
    return _summary(sums, count, num_iw_samples, _num_dims(model, likelihood))


def _average_draws(encode, bound, variables, images, key, num_samples):
    """Per-example terms (B, ...) of one batch, averaged over posterior draws."""
    features = encode(variables, images)
    log_weights, total = [], None
    for k in range(num_samples):
        terms = bound(variables, features, images, jax.random.fold_in(key, k))
        log_weights.append(terms.pop("log_weight"))
        total = terms if total is None else jax.tree.map(jnp.add, total, terms)
    mean = jax.tree.map(lambda t: t / num_samples, total)
    log_mean_weight = jax.nn.logsumexp(jnp.stack(log_weights), axis=0) - np.log(num_samples)
    return {**mean, "neg_log_p": -log_mean_weight}


def _num_dims(model, likelihood):
    size = model.hierarchy.image_size
    logits = jax.ShapeDtypeStruct((1, size, size, model.output_channels), jnp.float32)
    return likelihood(logits).num_dims


def _summary(sums, count, num_iw_samples, num_dims):
    mean = {name: value / count for name, value in sums.items()}
    kl = float(mean["kl"].sum())
    nelbo = float(mean["reconstruction"]) + kl
    neg_log_p = float(mean["neg_log_p"])
    return {
        "num_examples": count,
        "num_iw_samples": num_iw_samples,
        "nelbo": nelbo,
        "reconstruction": float(mean["reconstruction"]),
        "kl": kl,
        "kl_group": mean["kl"].tolist(),
        "neg_log_p": neg_log_p,
        "nelbo_bits_per_dim": float(bits_per_dim(nelbo, num_dims)),
        "bits_per_dim": float(bits_per_dim(neg_log_p, num_dims)),
        "num_dims": num_dims,
    }


def evaluate_run(
    workdir, experiment, state, *, split, num_iw_samples, max_examples, batch_size, seed
):
    """Evaluates a loaded run, prints the result and writes it to `workdir/eval/`.

    Args:
      workdir: the run directory.
      experiment: from `build.build`.
      state: the restored training state.
      split: of the data; where there is no "test", "validation" takes its place, and is said.
      num_iw_samples: K.
      max_examples: only the first so many; None takes all.
      batch_size: None takes the config's.
      seed: of posterior draws and binarisation.

    Returns:
      the result, as written.
    """
    used = pipeline.resolve_split(experiment.data, split)
    if used != split:
        reporting.say(f"{experiment.data.name} has no split {split!r}: evaluating {used!r}")
    batches = pipeline.eval_batches(
        experiment.data,
        split=used,
        batch_size=sharding.round_up(
            experiment.mesh, batch_size or experiment.evaluation.batch_size
        ),
        seed=seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        max_examples=max_examples,
    )
    total = pipeline.num_examples(experiment.data, used)
    with tqdm(total=min(total, max_examples or total), unit="image", disable=None) as bar:
        result = evaluate(
            experiment.model,
            experiment.likelihood,
            state.variables,
            batches,
            num_iw_samples=num_iw_samples,
            seed=seed,
            mesh=experiment.mesh,
            progress=lambda done: bar.update(done - bar.n),
        )
    result = {"step": int(state.step), "split": used, "seed": seed, **result}
    name = f"{used}_step_{result['step']:08d}_k{num_iw_samples}"
    name += f"_first{max_examples}" if max_examples else ""
    path = Path(workdir) / "eval" / f"{name}.json"
    if distributed.is_primary():
        run_directory.write_text(path, json.dumps(result, indent=2) + "\n")
    reporting.say(_report(result))
    reporting.say(f"written to {path}")
    return result


def _report(result):
    return "\n".join(
        (
            f"{result['split']}: {result['num_examples']} images, step {result['step']}",
            f"  NELBO {result['nelbo']:.4f} nats ({result['nelbo_bits_per_dim']:.4f} bits/dim) = "
            f"reconstruction {result['reconstruction']:.4f} + KL {result['kl']:.4f}",
            f"  importance-weighted -log p, K = {result['num_iw_samples']}: "
            f"{result['neg_log_p']:.4f} nats ({result['bits_per_dim']:.4f} bits/dim)",
        )
    )
