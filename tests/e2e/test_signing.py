"""Signed models as a user has them: keys, signatures, and a server that takes nothing else."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from muelle.packaging import signing
from muelle.repository.store import Store
from tests.e2e.test_store_cli import Commands
from tests.serving import Served, eventually
from tests.stores import stamped
from tests.unit.packaging.oci_samples import small_image

BODY = json.dumps({"inputs": {"x": [1.0]}})


class Desk:
    """A folder with keys and models, and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.muelle = Commands(folder / "store")
        for name in ("release", "other"):
            signing.write_keys(folder / name, signing.new_key())
        self.key, self.pub = folder / "release.key", folder / "release.pub"

    def model(self, number: int, name: str = "stamped.py") -> Path:
        """Write a model whose answers tell its number."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(stamped(number))
        return file

    def serve_store(self, *more: str) -> Served:
        """Serve the store, with the policy."""
        return Served(
            "--store", str(self.muelle.store), "--poll-s", "0.1",
            "--require-signature", str(self.pub), *more,
        )  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Two keys, no model yet."""
    return Desk(tmp_path)


def answers(served: Served, name: str = "stamped") -> str:
    """Return the version that answers, or the status and why none does."""
    status, headers, body = served.ask("POST", f"/models/{name}/predict", BODY)
    return headers["muelle-version"] if status == 200 else f"{status} {body.decode()}"


# --- the commands ---


def test_keygen_makes_a_pair_that_signs_and_verifies(tmp_path: Path) -> None:
    """keygen, sign and verify of a file; the private half is its owner's alone."""
    muelle = Commands(tmp_path / "store")
    made = muelle.json("keygen", tmp_path / "k")
    assert stat.S_IMODE(Path(made["private"]).stat().st_mode) == 0o600
    assert (made["kind"], made["encrypted"]) == ("ed25519", False)
    file = tmp_path / "model.onnx"
    file.write_bytes(b"weights")
    done = muelle.json("sign", file, "--key", made["private"])
    assert done == {"signed": str(file), "signature": f"{file}.sig", "key": made["id"]}
    found = muelle.json("verify", file, "--key", made["public"])
    assert found == {"ok": True, "verified": str(file), "key": made["id"]}
    assert "exists already" in muelle.refused("keygen", tmp_path / "k", code=2)


def test_verify_says_what_is_wrong(desk: Desk) -> None:
    """Another key, a changed file, a lost signature: exit code 1 and one line each."""
    muelle, file = desk.muelle, desk.model(1)
    muelle.ok("sign", file, "--key", desk.key)
    other = desk.folder / "other.pub"
    assert "another key" in muelle.refused("verify", file, "--key", other)
    assert muelle.ok("verify", file, "--key", other, "--key", desk.pub)
    elsewhere = Path(f"{file}.sig").rename(desk.folder / "elsewhere.sig")
    assert "no such signature" in muelle.refused("verify", file, "--key", desk.pub)
    assert muelle.ok("verify", file, "--key", desk.pub, "--signature", elsewhere)
    file.write_text("changed")
    line = muelle.refused("verify", file, "--key", desk.pub, "--signature", elsewhere)
    assert "changed" in line
    assert "--key" in muelle.refused("verify", file, code=2)
    assert "private key" in muelle.refused("verify", file, "--key", desk.key, code=2)


def test_an_encrypted_key_signs_with_its_password(desk: Desk) -> None:
    """keygen encrypts when the password is set; it never has to stand on the command line."""
    word = desk.folder / "word"
    word.write_text("secret\n")
    file = desk.model(1)
    base = [sys.executable, "-m", "muelle"]
    env = {**os.environ, "MUELLE_SIGN_PASSWORD_FILE": str(word), "MUELLE_LANG": "en"}
    name = desk.folder / "safe"
    subprocess.run([*base, "keygen", name], env=env, check=True, capture_output=True)
    assert "encrypted" in desk.muelle.refused("sign", file, "--key", f"{name}.key", code=2)
    subprocess.run(
        [*base, "sign", file, "--key", f"{name}.key"], env=env, check=True, capture_output=True
    )
    assert desk.muelle.ok("verify", file, "--key", f"{name}.pub")


def test_versions_are_signed_and_verified(desk: Desk) -> None:
    """push --sign and sign REF; verify of one version, and of the whole store with a key."""
    muelle = desk.muelle
    muelle.ok("push", desk.model(1), "--trust", "--sign", desk.key)
    assert muelle.json("verify", "stamped:1", "--key", desk.pub)["verified"] == "stamped:1"
    muelle.ok("push", desk.model(2), "--trust")
    line = muelle.refused("verify", "stamped:2", "--key", desk.pub)
    assert "stamped:2: not signed" in line
    assert "muelle sign stamped:2" in line
    whole = muelle("verify", "--key", desk.pub)
    assert whole.returncode == 1
    assert "signature: stamped:2: not signed" in whole.stdout
    muelle.ok("sign", "stamped:2", "--key", desk.key)
    assert muelle.ok("verify", "--key", desk.pub)
    assert ("sign", True) in muelle.audit()


def test_a_signature_does_not_cover_what_rots(desk: Desk) -> None:
    """A blob that changed on the disk is neither verified nor signed."""
    muelle = desk.muelle
    muelle.ok("push", desk.model(1), "--trust", "--sign", desk.key)
    (blob,) = (p for p in (muelle.store / "blobs").rglob("*") if p.is_file())
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"X")
    assert "has changed on the disk" in muelle.refused("verify", "stamped:1", "--key", desk.pub)
    assert "has changed on the disk" in muelle.refused("sign", "stamped:1", "--key", desk.key)


def test_signatures_travel_with_exports(desk: Desk) -> None:
    """export writes them, pull brings them in, and refuses what is not signed as required."""
    muelle = desk.muelle
    muelle.ok("push", desk.model(1), "--trust", "--sign", desk.key)
    muelle.ok("push", desk.model(2), "--trust")
    for layout in ("plain", "triton"):
        there = Commands(desk.folder / f"there-{layout}")
        require = ("--trust", "--require-signature", desk.pub)
        out = desk.folder / layout
        muelle.ok("export", "stamped:1", out / "1", "--layout", layout)
        muelle.ok("export", "stamped:2", out / "2", "--layout", layout)
        line = there.refused("pull", out / "2", *require)
        assert "stamped:2: not signed" in line
        assert there.json("list") == []
        there.ok("pull", out / "1", *require)
        assert there.ok("verify", "stamped:1", "--key", desk.pub)
    store = Commands(desk.folder / "copy")
    store.ok("pull", muelle.store, "stamped:1", *require)
    assert store.ok("verify", "stamped:1", "--key", desk.pub)


def test_a_pulled_file_that_was_changed_is_refused(desk: Desk) -> None:
    """Neither a changed file nor a record that was changed with it comes in."""
    muelle = desk.muelle
    muelle.ok("push", desk.model(1), "--trust", "--sign", desk.key)
    out = desk.folder / "out"
    muelle.ok("export", "stamped:1", out)
    there = Commands(desk.folder / "there")
    require = ("--trust", "--require-signature", desk.pub)
    evil = b"import os\n"
    (out / "stamped.py").write_bytes(evil)
    assert "not the one that was exported" in there.refused("pull", out, *require)
    record = json.loads((out / "muelle.json").read_text())
    (sha256,) = (sha for _, sha in signing.hash_files(out / "stamped.py"))
    record["digest"] = f"sha256:{sha256}"
    record["files"][0] |= {"sha256": sha256, "size": len(evil)}
    (out / "muelle.json").write_text(json.dumps(record))
    assert "stamped.py: changed" in there.refused("pull", out, *require)
    assert there.json("list") == []


def test_push_asks_for_the_signature_beside_the_file(desk: Desk) -> None:
    """With --require-signature a file needs its PATH.sig, which comes into the store with it."""
    muelle, file = desk.muelle, desk.model(1)
    require = ("--trust", "--require-signature", desk.pub)
    assert "not signed" in muelle.refused("push", file, *require)
    muelle.ok("sign", file, "--key", desk.folder / "other.key")
    assert "another key" in muelle.refused("push", file, *require)
    assert muelle.json("list") == []
    muelle.ok("sign", file, "--key", desk.key)
    muelle.ok("push", file, *require)
    assert muelle.ok("verify", "stamped:1", "--key", desk.pub)


# --- the server ---


def test_a_server_loads_only_signed_versions(desk: Desk) -> None:
    """An unsigned version does not answer and says why; signed, it answers without a restart."""
    desk.muelle.ok("push", desk.model(1), "--trust")
    with desk.serve_store() as served:
        told = answers(served)
        assert told.startswith("503")
        assert "not signed" in told
        desk.muelle.ok("sign", "stamped:1", "--key", desk.folder / "other.key")
        eventually(lambda: "another key" in answers(served))
        desk.muelle.ok("sign", "stamped:1", "--key", desk.key)
        eventually(lambda: answers(served) == "1")


def test_a_label_does_not_move_to_an_unsigned_version(desk: Desk) -> None:
    """The command fails with the reason, the old version goes on; push --sign goes through."""
    muelle = desk.muelle
    muelle.ok("push", desk.model(1), "--trust", "--sign", desk.key)
    with desk.serve_store() as served:
        assert answers(served) == "1"
        muelle.ok("push", desk.model(2), "--trust")
        assert "not signed" in muelle.refused("label", "stamped:2", "stable")
        assert answers(served) == "1"
        muelle.ok("push", desk.model(3), "--trust", "--sign", desk.key, "--label", "stable")
        assert answers(served) == "3"
        muelle.ok("sign", "stamped:2", "--key", desk.key)
        muelle.ok("label", "stamped:2", "stable")
        assert answers(served) == "2"


def test_what_was_changed_in_the_store_is_not_loaded(desk: Desk) -> None:
    """The server reads the files themselves, not only what the store says of them."""
    muelle = desk.muelle
    muelle.ok("push", desk.model(1), "--trust", "--sign", desk.key)
    with Store.open(muelle.store) as store:
        record = store.record("stamped", 1)
        place = store.checkout(record.files, record.digest) / "stamped.py"
    text = place.read_text()
    place.chmod(0o644)
    place.write_text(text.replace("2 * x", "3 * x"))
    with desk.serve_store() as served:
        told = answers(served)
        assert told.startswith("503")
        assert "stamped.py: changed" in told


def test_plain_files_need_their_signature_beside_them(desk: Desk) -> None:
    """Without it, or with a changed file, the server does not start; with it, it serves."""
    file = desk.model(1)
    serve = ("serve", file, "--trust", "--port", "0", "--require-signature", desk.pub)
    assert "there is no stamped.py.sig" in desk.muelle.refused(*serve)
    desk.muelle.ok("sign", file, "--key", desk.key)
    with Served(str(file), "--trust", "--require-signature", str(desk.pub)) as served:
        assert answers(served) == "1"
    file.write_text(stamped(2))
    assert "the file: changed" in desk.muelle.refused(*serve)
    with Served(str(file), "--trust") as served:
        assert answers(served) == "1", "without the policy nothing is asked for"


def test_a_folder_of_models_is_followed_under_the_policy(desk: Desk) -> None:
    """A new version without a signature does not take over; once it is signed, it does."""
    signed = desk.model(1, "models/stamped/1/model.py")
    desk.muelle.ok("sign", signed, "--key", desk.key)
    with Served(
        str(desk.folder / "models"), "--trust", "--poll-s", "0.1",
        "--require-signature", str(desk.pub),
    ) as served:  # fmt: skip
        assert answers(served) == "1"
        new = desk.model(2, "models/stamped/2/model.py")
        eventually(lambda: "not signed" in served.ask("GET", "/models/stamped")[2].decode())
        assert answers(served) == "1"
        desk.muelle.ok("sign", new, "--key", desk.key)
        eventually(lambda: answers(served) == "2")


def test_the_policy_from_a_file_and_wrong_keys(desk: Desk) -> None:
    """muelle.toml names keys relative to itself; a key that is none stops the start."""
    (desk.folder / "muelle.toml").write_text(
        '[security]\nrequire_signature = ["release.pub", "other.pub"]\n'
    )
    shown = desk.muelle.json("config", "show", "--config", desk.folder / "muelle.toml")
    assert str(desk.pub) in json.dumps(shown)
    file = desk.model(1)
    for key, words in ((desk.key, "private key"), (file, "no public key")):
        line = desk.muelle.refused("serve", file, "--trust", "--require-signature", key, code=2)
        assert words in line


# --- bundles and images ---


def test_bundles_and_images_are_checked_whole_and_by_their_signature(desk: Desk) -> None:
    """Without a key: whole or not. With one: the signature inside, or the one beside."""
    muelle = desk.muelle
    muelle.ok("push", desk.model(1), "--trust", "--sign", desk.key)
    bundle, image = desk.folder / "f.muelle", desk.folder / "image.tar"
    muelle.ok("bundle", "stamped", "--no-wheels", "--sign", desk.key, "-o", bundle)
    (desk.folder / "work").mkdir()
    written = small_image(desk.folder / "work")
    written.path.rename(image)
    manifest = signing.sign_digest(
        signing.OCI_MANIFEST, written.manifest_digest, "x", signing.load_private(desk.key, {})
    )
    signing.write_signature(signing.signature_path(image), manifest)
    for path in (bundle, image):
        assert "not checked" in muelle.ok("verify", path)
        assert "signed by" in muelle.ok("verify", path, "--key", desk.pub)
        assert "another key" in muelle.refused("verify", path, "--key", desk.folder / "other.pub")
        muelle.ok("sign", path, "--key", desk.folder / "other.key")
        beside = signing.signature_path(path)
        assert muelle.ok("verify", path, "--signature", beside, "--key", desk.folder / "other.pub")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        muelle.refused("verify", path)


def test_an_import_asks_for_signed_versions(desk: Desk) -> None:
    """`import --require-signature`: by the versions' own signatures, which come along."""
    muelle = desk.muelle
    muelle.ok("push", desk.model(1), "--trust")
    there = Commands(desk.folder / "there")
    require = ("--trust", "--require-signature", desk.pub)
    bundle = desk.folder / "f.muelle"
    muelle.ok("bundle", "stamped", "--no-wheels", "-o", bundle)
    assert "not signed" in there.refused("import", bundle, *require)
    muelle.ok("sign", "stamped", "--key", desk.key)
    bundle.unlink()
    muelle.ok("bundle", "stamped", "--no-wheels", "-o", bundle)
    there.ok("import", bundle, *require)
    assert there.ok("verify", "stamped", "--key", desk.pub)
