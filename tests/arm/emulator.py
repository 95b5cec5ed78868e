"""Build below build/arm what runs a Python of aarch64 here: QEMU, Debian's files, wheels.

apt keeps its lists and files there too, so that this needs no root and the machine's own packages
stay as they are; it checks signatures and checksums, as pip does.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from edgeopt.devices.environment import PROBE, platform_tags

FOLDER = Path(__file__).parents[2] / "build" / "arm"
PYTHON, ROOT, APT = (FOLDER / name for name in ("python", "root", "apt"))
SITE = ROOT / "usr/lib/python3/dist-packages"
WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")
QEMU = "qemu-aarch64-static"
# Without binfmt_misc the kernel starts no file of another CPU: a child is this script again.
STARTER = f"""\
#!/bin/sh
here=${{0%/*}}
ulimit -c 0
export PYTHONHOME="$here/root/usr" PYTHONDONTWRITEBYTECODE=
exec "$here/{QEMU}" -cpu cortex-a76 -0 "$0" -L "$here/root" "$here/root/usr/bin/python3" "$@"
"""
# Of a Raspberry Pi 5; without it and the two lists of cores ONNX Runtime reads this machine's.
CPUINFO = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
NO_APT = "an emulated ARM machine is made of Debian packages, and there is no {} here"


def build() -> None:
    """Make the folder anew."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise RuntimeError(NO_APT.format(program))
    shutil.rmtree(FOLDER, ignore_errors=True)
    ROOT.mkdir(parents=True)
    for package in downloaded():
        if package.name.startswith("qemu"):
            unpack_emulator(package)
        else:
            subprocess.run(["dpkg-deb", "--extract", package, ROOT], check=True)
    shutil.rmtree(APT)
    write_kernel_files(os.cpu_count())
    PYTHON.write_text(STARTER)
    PYTHON.chmod(0o755)
    install_wheels()


def downloaded() -> Iterator[Path]:
    """Debian packages of the emulator and, for arm64, of Python and all that it depends on."""
    here = output("dpkg", "--print-architecture").strip()
    for folder in ("state", "cache"):
        (APT / folder).mkdir(parents=True)
    (APT / "status").touch()  # as if nothing were installed
    options = {
        "Dir::State": APT / "state",
        "Dir::State::status": APT / "status",
        "Dir::Cache": APT / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures": f"arm64,{here}",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    wanted = ["python3:arm64", "libstdc++6:arm64", f"qemu-user-static:{here}"]
    output(*apt, "update")
    output(*apt, "--yes", "--no-install-recommends", "--download-only", "install", *wanted)
    return APT.glob("cache/archives/*.deb")


def unpack_emulator(package: Path) -> None:
    """Take the one program out of the many that a package holds."""
    command = ["dpkg-deb", "--fsys-tarfile", package]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as unpacked,
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as files,
    ):
        [found] = [files.extractfile(f).read() for f in files if f.name.endswith(f"/bin/{QEMU}")]
    (FOLDER / QEMU).write_bytes(found)
    (FOLDER / QEMU).chmod(0o755)


def write_kernel_files(cores: int) -> None:
    """Write what the kernel of an ARM machine would tell of its cores."""
    cpus = ROOT / "sys/devices/system/cpu"
    (cpus / "cpu0/cache").mkdir(parents=True)  # empty, else this machine's would be read
    for name in ("possible", "present"):
        (cpus / name).write_text(f"0-{cores - 1}\n")
    (ROOT / "proc").mkdir()
    text = "".join(CPUINFO.format(number=number) for number in range(cores))
    (ROOT / "proc/cpuinfo").write_text(text)


def install_wheels() -> None:
    """Put the versions that are installed here there, as wheels for its platform."""
    told = json.loads(output(PYTHON, "-c", PROBE))
    version = ".".join(map(str, told["version"][:2]))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", SITE]
    pip += ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    pip += [word for tag in platform_tags(told["machine"], told["libc"]) for word in tag]
    output(*pip, *(f"{name}=={metadata.version(name)}" for name in WHEELS))


def output(*command: str | Path) -> str:
    """What a command writes; ``RuntimeError`` with all that it said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    build()
