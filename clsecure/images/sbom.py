"""The bill of materials of an image: CycloneDX, the same bytes for the same lock."""

from __future__ import annotations

import base64
import json
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clsecure.images.lock import Lock, LockedNpm, LockedPackage, canonical

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

PATH = "usr/share/clsecure/sbom.cdx.json"
"""Where it lies in an image."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/clsecure")
_ALGORITHMS = {"sha512": "SHA-512", "sha384": "SHA-384"}


def bill_of_materials(lock: Lock, *, suite: str) -> bytes:
    """Return the document: each package with its version, hash and package URL."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    inputs = lock.inputs
    image = Component(
        type=ComponentType.CONTAINER,
        name=f"clsecure/{lock.image}",
        version=inputs.sha256()[:12],
        bom_ref="image",
    )
    components = [
        *(_debian(package, suite) for package in inputs.packages),
        *(_npm(package) for package in inputs.npm),
    ]
    bom = Bom(
        # Neither chance nor the hour: two builds are the same bytes.
        serial_number=uuid.uuid5(_NAMESPACE, inputs.sha256()),
        metadata=BomMetaData(
            timestamp=datetime.fromtimestamp(inputs.source_date_epoch, UTC),
            component=image,
        ),
        components=components,
    )
    bom.register_dependency(image, components)
    # The library's own spaces and order may change with its version.
    return canonical(json.loads(JsonV1Dot6(bom).output_as_string()))


def _debian(package: LockedPackage, suite: str) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    url = PackageURL(
        type="deb", namespace="debian", name=package.name, version=package.version,
        qualifiers={"arch": package.architecture, "distro": suite},
    )  # fmt: skip
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=url,
        bom_ref=url.to_string(),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=package.sha256)],
    )


def _npm(package: LockedNpm) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    namespace, _, name = package.package.rpartition("/")
    algorithm, _, encoded = package.integrity.partition("-")
    url = PackageURL(type="npm", namespace=namespace or None, name=name, version=package.version)
    return Component(
        type=ComponentType.APPLICATION,
        group=namespace or None,
        name=name,
        version=package.version,
        purl=url,
        bom_ref=url.to_string(),
        hashes=[HashType(alg=HashAlgorithm(_ALGORITHMS[algorithm]), content=base64.b64decode(encoded).hex())],
    )
