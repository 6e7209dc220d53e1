"""From a lock to an image: fetch, install, normalise, write; and the comparison with what must come out."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import cast

from clsecure.errors import ImageError
from clsecure.images.archive import configuration, image_id, write_archive
from clsecure.images.fetch import Progress, Sources, fetch_npm, fetch_packages
from clsecure.images.layers import Layer, base_layer, files_layer, npm_layer
from clsecure.images.lock import Lock, LockedLayer, Outcome, check_recipe
from clsecure.images.recipe import Recipe
from clsecure.images.rootfs import make_root
from clsecure.images.sbom import PATH as SBOM_PATH
from clsecure.images.sbom import bill_of_materials

AGENTS = "opt/clsecure/bin"
"""Where an image has them."""
WORK = Path("/var/tmp")  # noqa: S108  # directories of our own in it
"""Where a root file system is made: open to the account that mmdebstrap uses, and on a disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An image in an archive.

    :param outcome: what came out; with a lock that has one, the same.
    :param sbom: the bill of materials, beside the archive.
    """

    outcome: Outcome
    archive: Path
    sbom: Path


def build(
    recipe: Recipe, lock: Lock, *, sources: Sources, target: Path, progress: Progress, compare: bool = True
) -> Built:
    """Build an image from its lock into the archive ``target``, and put its bill of materials beside it.

    :param compare: refuse an image that is not the one in the lock.
    :raises ImageError: an input can't be had, or another image came out.
    """
    check_recipe(recipe, lock)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="clsecure-image-", dir=WORK) as name:
        work = Path(name)
        work.chmod(0o755)
        sbom = bill_of_materials(lock, suite=recipe.suite)
        layers = _layers(recipe, lock, sbom, work, sources=sources, progress=progress)
        config = configuration(
            layers,
            architecture=lock.architecture,
            epoch=lock.inputs.source_date_epoch,
            environment=recipe.environment,
            labels=_labels(recipe, lock, sbom),
        )
        outcome = Outcome(
            image=image_id(config),
            layers=tuple(LockedLayer(name=e.name, diff_id=e.diff_id, size=e.size) for e in layers),
            agents=_programs(recipe, layers),
        )
        if compare:
            check_outcome(lock, outcome)
        progress("writing the archive")
        with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as staging:
            written = Path(staging, "image.tar")
            write_archive(written, name=lock.image, config=config, layers=layers)
            written.replace(target)
        beside = target.with_suffix(".cdx.json")
        beside.write_bytes(sbom)
    return Built(outcome=outcome, archive=target, sbom=beside)


def check_outcome(lock: Lock, outcome: Outcome) -> None:
    """Refuse an image that is not the one in the lock.

    :raises ImageError: names the layers that differ.
    """
    if lock.outcome is None:
        return
    if lock.outcome.image == outcome.image:
        if lock.outcome.agents != outcome.agents:
            raise ImageError(
                f"the lock of the image {lock.image} names other programs than the image has",
                details=f"built {dict(outcome.agents)}, locked {dict(lock.outcome.agents)}",
            )
        return
    expected = {layer.name: layer.diff_id for layer in lock.outcome.layers}
    found = {layer.name: layer.diff_id for layer in outcome.layers}
    differ = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    what = (
        f"the layer {', '.join(differ)} differs" if differ else "the layers are the same, the labels differ"
    )
    raise ImageError(
        f"the image {lock.image} is not the one in its lock: {what}",
        details=f"built {outcome.image}, locked {lock.outcome.image}",
        resolution="other versions of mmdebstrap, apt or dpkg may install differently; with a reason, "
        f"lock anew, in a checkout: ./dev invoke lock-images --image {lock.image}",
    )


def _layers(
    recipe: Recipe, lock: Lock, sbom: bytes, work: Path, *, sources: Sources, progress: Progress
) -> tuple[Layer, ...]:
    epoch = lock.inputs.source_date_epoch
    packages = fetch_packages(lock, sources, suite=recipe.suite, progress=progress)
    archives = {each.layer: fetch_npm(each, sources, progress=progress) for each in lock.inputs.npm}
    rootfs = work / "root"
    rootfs.mkdir()
    rootfs.chmod(0o755)  # whatever the umask: mmdebstrap works in it as another account
    root = make_root(packages, rootfs, suite=recipe.suite, epoch=epoch, progress=progress)
    progress("normalising the root file system")
    base = base_layer(root, work / "base.tar", epoch=epoch)
    root.unlink()
    thin = [
        npm_layer(each, archives[each.name], work / f"{each.name}.tar", epoch=epoch) for each in recipe.layers
    ]
    return base, *thin, files_layer("sbom", {SBOM_PATH: sbom}, work / "sbom.tar", epoch=epoch)


def _programs(recipe: Recipe, layers: Sequence[Layer]) -> dict[str, str]:
    """Return the sha256 of each agent's program, as it lies in its layer."""
    found = {}
    for agent in recipe.agents:
        (layer,) = (each for each in layers if each.name == agent.name)
        with tarfile.open(layer.path, "r:") as tar:
            program = tar.extractfile(f"{AGENTS}/{agent.name}")
            assert program is not None  # noqa: S101  # a layer of npm's has regular files
            found[agent.name] = hashlib.file_digest(cast(BufferedReader, program), "sha256").hexdigest()
    return found


def _labels(recipe: Recipe, lock: Lock, sbom: bytes) -> dict[str, str]:
    agents: Sequence[str] = [f"{agent.name}@{agent.version}" for agent in recipe.agents]
    return {
        "clsecure.agents": ",".join(agents),
        "clsecure.image": recipe.name,
        "clsecure.lock.sha256": lock.inputs.sha256(),
        "clsecure.sbom.sha256": hashlib.sha256(sbom).hexdigest(),
        "org.opencontainers.image.base.name": f"debian:{recipe.suite}",
        "org.opencontainers.image.description": recipe.description,
        "org.opencontainers.image.title": f"clsecure/{recipe.name}",
        "org.opencontainers.image.version": lock.inputs.sha256()[:12],
    }
