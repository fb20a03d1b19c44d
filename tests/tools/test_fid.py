"""Distances of samples from images: closed forms, pooling, the Inception network with random
weights, and resuming."""

import hashlib
import json

import numpy as np
import pytest

from nvae_jax import loading
from nvae_jax.metrics import fid, moments, parts, statistics
from nvae_jax.metrics.features import Inception, PrincipalComponents
from nvae_jax.metrics.statistics import Statistics
from nvae_jax.prior_samples import sample_images
from nvae_jax.recalibrate import recalibrated_statistics


@pytest.fixture(scope="module")
def loaded(workdir):
    """(run directory, experiment, snapshot)."""
    return workdir, *loading.load_run(workdir)


def gaussians(num, size):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, size)) @ rng.normal(size=(size, size)) + 100


def statistics_of(features):
    pooled = moments.Moments.of(features)
    return Statistics(pooled.count, pooled.mean, pooled.covariance, features)


@pytest.mark.parametrize("cuts", [[1], [7, 8, 200], list(range(1, 500))])
def test_pooled_moments_equal_those_of_all_features(cuts):
    features = gaussians(500, 6)
    pooled = moments.pool(np.split(features, cuts))
    assert pooled.count == 500 and pooled.mean.dtype == np.float64
    np.testing.assert_allclose(pooled.mean, features.mean(0), rtol=1e-13)
    np.testing.assert_allclose(pooled.covariance, np.cov(features, rowvar=False), rtol=1e-11)


def test_the_frechet_distance_of_gaussians_equals_its_closed_form():
    """For commuting covariances: |shift|² + the sum of squared differences of deviations."""
    one, other = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    shift = np.array([0.5, 0.0, -1.0])
    expected = (shift**2).sum() + ((one - other) ** 2).sum()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    a, b = (rotation @ np.diag(s**2) @ rotation.T for s in (one, other))
    found = moments.frechet_distance(rotation @ shift, a, np.zeros(3), b)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert abs(moments.frechet_distance(shift, a, shift, a)) < 1e-12


def test_distances_equal_those_of_torch_fidelity():
    pytest.importorskip("torch_fidelity", reason="torch-fidelity (extra metrics) is not installed")
    samples, reference = gaussians(40, 4), gaussians(60, 4)[:50] + 0.3
    found = statistics.compare(statistics_of(samples), statistics_of(reference), inception=True)
    pair = [(s.mean(0), np.cov(s, rowvar=False)) for s in (samples, reference)]
    np.testing.assert_allclose(found["fid"], moments.frechet_distance(*pair[0], *pair[1]))

    # With all samples in every subset KID is the unbiased MMD of the cubic kernel.
    even = statistics.compare(statistics_of(samples), statistics_of(reference[:40]), inception=True)
    assert even["kid_subset_size"] == 40 and even["kid_std"] < 1e-6 * even["kid"]
    kernel = lambda a, b: (a @ b.T / 4 + 1) ** 3  # noqa: E731
    within = [
        (kernel(s, s).sum() - np.trace(kernel(s, s))) / (40 * 39) for s in (samples, reference[:40])
    ]
    expected = sum(within) - 2 * kernel(samples, reference[:40]).mean()
    np.testing.assert_allclose(even["kid"], expected, rtol=1e-6)

    # Samples that are some of the images: all of them are precise. Far away none are.
    same = statistics.compare(
        statistics_of(reference[:20]), statistics_of(reference), inception=True
    )
    assert same["precision"] == 1.0 and same["recall"] > 0.4
    far = statistics.compare(statistics_of(samples + 1e4), statistics_of(reference), inception=True)
    assert far["precision"] == far["recall"] == 0.0


def test_precision_and_recall_equal_those_computed_by_hand():
    """Images are at 0 to 9, samples near 0 to 4, so 8 of 10 images are near samples."""
    pytest.importorskip("torch_fidelity", reason="torch-fidelity (extra metrics) is not installed")
    images = np.arange(10.0)[:, None]
    samples = np.arange(5.0)[:, None] + 0.1
    found = statistics._by_features(samples, images)
    radius = lambda points: np.sort(abs(points - points.T), 1)[:, 3]  # noqa: E731
    distances = abs(samples - images.T)
    assert found["precision"] == (distances <= radius(images)[None]).any(1).mean() == 1
    assert (distances.T <= radius(samples)[None]).any(1).mean() == 0.8
    assert found["recall"] == pytest.approx(0.8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(file, SHA-256) of random weights of the reference network."""
    pytest.importorskip("torch_fidelity", reason="torch-fidelity (extra metrics) is not installed")
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as library

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = library.FeatureExtractorInceptionV3("random", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_inception_features_equal_those_of_torch_fidelity(weights):
    import torch
    from torch_fidelity.utils import create_feature_extractor

    path, digest = weights
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 1), np.uint8)
    features = Inception(path, digest)
    library = create_feature_extractor(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path), cuda=False
    )
    coloured = torch.from_numpy(images.repeat(3, -1).transpose(0, 3, 1, 2).copy())
    found = features(images)
    assert found.shape == (2, features.size) and found.std() > 0
    np.testing.assert_array_equal(found, library(coloured)[0].numpy())
    floats = images.astype(np.float32) / 255
    np.testing.assert_allclose(features(floats), found, rtol=1e-3, atol=1e-5)
    assert np.abs(features(floats * 0.999) - found).max() > 0  # not rounded
    assert features.about["weights_sha256"] == digest and not features.about["weights_published"]


def test_missing_and_wrong_weights_are_errors(weights, tmp_path):
    path, digest = weights
    with pytest.raises(ValueError, match="--weights=FILE is missing: download https://github"):
        Inception(None)
    with pytest.raises(ValueError, match=f"SHA-256 {digest[:16]}..., not 6726825d...: the publ"):
        Inception(path)
    with pytest.raises(ValueError, match="must be 8 to 64 hexadecimal digits, not '12'"):
        Inception(path, "12")
    import torch

    for content in ({"conv.weight": torch.zeros(3)}, [hashlib]):
        torch.save(content, tmp_path / "other.pth") if isinstance(content, dict) else (
            tmp_path / "other.pth"
        ).write_bytes(b"no weights")
        other = hashlib.sha256((tmp_path / "other.pth").read_bytes()).hexdigest()
        with pytest.raises(ValueError, match="holds no weights of the Inception network") as error:
            Inception(tmp_path / "other.pth", other)
        assert "\n" not in str(error.value)


def test_principal_components_preserve_distances():
    """All components are a rotation; the first ones have most of the variance."""
    images = (
        np.random.default_rng(0).random((30, 2, 2, 1)) * np.array([1, 3, 1, 1]).reshape(2, 2, 1) / 3
    )
    features = PrincipalComponents(np.split(images, 3), 4)
    found, flat = features(images), images.reshape(30, 4)
    np.testing.assert_allclose(found @ found.T, flat @ flat.T)
    assert list(np.argsort(-found.var(0))) == [0, 1, 2, 3]
    large = PrincipalComponents([np.random.default_rng(0).random((5, 64, 64, 1))], 2)
    assert large(np.ones((1, 64, 64, 1))).shape == (1, 2)
    with pytest.raises(ValueError, match="components=5: 30 images of 4 values have at most 4"):
        PrincipalComponents([images], 5)


def run_pca(loaded, out, **options):
    given = {"features": "pca", "components": 3, "num": 20, "passes": 2, "reference": "test"}
    return fid.fid_run(*loaded, out=out, **{**given, **options})


def test_the_distance_of_principal_components_needs_no_weights(
    loaded, tmp_path, undocumented, capsys
):
    result = run_pca(loaded, tmp_path)
    assert json.loads((tmp_path / "fid.json").read_text()) == result
    assert not undocumented(result)
    images = np.concatenate(list(_samples(loaded, 20, 8)))
    digits = fid.open_set(loaded[1].data, "test").images
    training = fid.open_set(loaded[1].data, "train").images
    prepared = [
        fid.PROTOCOLS["standard"].prepare(np.asarray(a), loaded[1].data, "digits")
        for a in (digits, training)
    ]
    features = PrincipalComponents([prepared[1]], 3)
    pair = [statistics_of(features(i)) for i in (images, prepared[0])]
    expected = statistics.compare(*pair, inception=False)["frechet_distance"]
    np.testing.assert_allclose(result["frechet_distance"], expected, rtol=1e-6)
    out = capsys.readouterr().out
    for said in ("N = 20 samples", "temperature 1", "decoder mean", "pixels uint8", "297 images"):
        assert said in out
    assert "pooled, 2 passes of 4" in out and "peak memory" in out

    # Uses the saved statistics of the reference, and refuses others that do not fit.
    again = run_pca(loaded, tmp_path / "again", reference=str(tmp_path / "reference.npz"))
    assert again["frechet_distance"] == pytest.approx(result["frechet_distance"])
    assert again["num_reference"] == 297
    with pytest.raises(ValueError, match="other statistics: features is '3 principal"):
        run_pca(loaded, tmp_path / "c", components=4, reference=str(tmp_path / "reference.npz"))
    np.savez(tmp_path / "own.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(ValueError, match=r"own.npz has mu \(2,\) and sigma \(2, 2\)"):
        run_pca(loaded, tmp_path / "d", reference=str(tmp_path / "own.npz"))


def _samples(loaded, num, batch_size):
    workdir, experiment, state = loaded
    stats = recalibrated_statistics(workdir, experiment, state, temperature=1.0, passes=2)
    variables = {**state.variables, "batch_stats": stats}
    return sample_images(experiment, variables, num=num, batch_size=batch_size)


def test_an_interrupted_call_is_resumed(loaded, tmp_path, monkeypatch):
    """A call that was stopped twice gives the same numbers and computes nothing twice."""
    monkeypatch.setattr(parts, "PART", 8)
    monkeypatch.setattr(fid, "PART", 8)
    whole = run_pca(loaded, tmp_path / "whole", recalibrate_bn=False)
    computed, original = [], parts._write

    def stopping(path, images, features):
        if len(computed) in stops:
            stops.pop(0)
            raise KeyboardInterrupt
        computed.append((path.parent.name, path.stem, len(images)))
        original(path, images, features)

    monkeypatch.setattr(parts, "_write", stopping)
    stops = [3, 39]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_pca(loaded, tmp_path / "stopped", recalibrate_bn=False)
        assert not (tmp_path / "stopped" / "fid.json").exists()
    resumed = run_pca(loaded, tmp_path / "stopped", recalibrate_bn=False)
    assert resumed["frechet_distance"] == pytest.approx(whole["frechet_distance"], rel=1e-9)
    assert len(computed) == len(set(computed)) == 38 + 3
    assert [n for kind, _, n in computed if kind == "samples"] == [8, 8, 4]
    assert sorted(p.name for p in (tmp_path / "stopped").iterdir()) == ["fid.json", "reference.npz"]


def test_the_command_works_with_inception_features(loaded, weights, tmp_path, capsys, monkeypatch):
    """Tests the whole command with both protocols; few images give a warning. The eigenvalues of a
    matrix of 2,048² numbers would take half a minute, so they are replaced by 0."""
    monkeypatch.setattr(np.linalg, "eigvals", lambda product: np.zeros(len(product)))
    path, digest = weights
    images = np.random.default_rng(1).random((6, 16, 16, 1), np.float32)
    np.save(tmp_path / "images.npy", images)
    options = {"weights": str(path), "weights_sha256": digest, "num": 5, "recalibrate_bn": False}
    options["reference"] = str(tmp_path / "images.npy")
    for protocol, pixels in (("standard", "uint8"), ("published", "float")):
        out = tmp_path / protocol
        result = fid.fid_run(*loaded, out=out, protocol=protocol, **options)
        said = capsys.readouterr()
        assert result["pixels"] == pixels and result["num"] == 5 and result["num_reference"] == 6
        assert "5 samples for 2048 features: the result is meaningless" in said.err
        assert all(np.isfinite(result[n]) for n in ("fid", "kid", "precision", "recall"))
        assert "NOT the published weights" in said.out and f"protocol {protocol}" in said.out
    with np.load(tmp_path / "standard" / "reference.npz") as file:
        np.savez(tmp_path / "bare.npz", mu=file["mu"], sigma=file["sigma"])
    bare = fid.fid_run(
        *loaded, out=tmp_path / "bare", **{**options, "reference": str(tmp_path / "bare.npz")}
    )
    assert "kid" not in bare and bare["num_reference"] is None
    assert "no KID, precision and recall: bare.npz has no features" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 4}, "num: there must be at least 5 images, not 4"),
        ({"protocol": "published", "temperature": 0.7}, "published requires temperature 1"),
        ({"protocol": "published", "decoder": "sample"}, "published requires decoder=mean"),
        ({"protocol": "own"}, "unknown protocol 'own'; known: standard, published"),
        ({"reference": "tset"}, "'tset' is neither a file or folder"),
        ({"features": "clip"}, "unknown features 'clip'; known: inception, pca"),
        ({"components": 0}, "components=0"),
    ],
)
def test_invalid_options_are_errors(loaded, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_pca(loaded, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_samples_can_start_at_any_number(loaded):
    whole = np.concatenate(list(_samples(loaded, 9, 4)))
    workdir, experiment, state = loaded
    stats = recalibrated_statistics(workdir, experiment, state, temperature=1.0, passes=2)
    variables = {**state.variables, "batch_stats": stats}
    some = sample_images(experiment, variables, num=4, first=5, batch_size=4, rounded=False)
    some = np.concatenate(list(some))
    assert some.dtype == np.float32
    assert np.abs(some * 255 - whole[5:]).max() <= 1
