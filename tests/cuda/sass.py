"""Machine code of a cubin as ``cuobjdump -sass`` lists it: instructions, and the path that a full unit takes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# 0xD2511F53 and 0xCD9E8D57, as unsigned or signed immediates.
PHILOX_MULTIPLIERS = ("0xd2511f53", "-0x2daee0ad", "0xcd9e8d57", "-0x326172a9")
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+) )?\s*(\S+)([^;]*);")
_TARGET = re.compile(r"(?:^|[ ,(])`?\(?(0x[0-9a-f]+)\)?\s*$")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address, predicate ("" if none), opcode with modifiers ("LDG.E.128") and operands."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int:
        """Where a branch leads."""
        match = _TARGET.search(self.operands)
        if match is None:
            raise ValueError(f"no target in {self}")
        return int(match.group(1), 16)

    @property
    def is_philox(self) -> bool:
        """Whether it multiplies by one of Philox's constants."""
        return self.name in ("IMAD", "UIMAD") and any(m in self.operands.lower() for m in PHILOX_MULTIPLIERS)


@dataclass
class Kernel:
    """A kernel's mangled name, its instructions in order, and its registers and bytes of local memory per thread."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    registers: int = 0
    local: int = 0

    @cached_property
    def path(self) -> list[Instruction]:
        """The longest way from the entry to an exit that calls no subroutine.

        Of a kernel without loops, no thread that stays out of subroutines executes more instructions. Square roots of
        zeros, subnormals, infinities and NaN are such a subroutine; a branch of nvcc's own leads there.

        Raises:
            ValueError: if there is a loop.
        """
        index = {instruction.address: i for i, instruction in enumerate(self.instructions)}
        longest: dict[int, tuple[int, int | None]] = {}  # instructions from here on, and the next one
        dead = (-1, None)

        for i in reversed(range(len(self.instructions))):
            now = self.instructions[i]
            following = []
            if now.name in ("BRA", "JMP"):
                if now.target == now.address:  # what fills the end
                    longest[i] = dead
                    continue
                following = [index[now.target]]
            elif now.name in ("CALL", "RET", "BRX"):
                longest[i] = dead
                continue
            elif now.name == "EXIT":
                longest[i] = (1, None)
            if now.predicate or now.name not in ("BRA", "JMP", "EXIT"):
                following += [i + 1]
            for j in following:
                if j <= i:
                    raise ValueError(f"{self.name} has a loop at {now}")
                if j in longest and longest[j][0] >= 0 and longest[j][0] + 1 > longest.get(i, dead)[0]:
                    longest[i] = (longest[j][0] + 1, j)
            longest.setdefault(i, dead)
        path, at = [], 0 if longest[0][0] >= 0 else None
        while at is not None:
            path.append(self.instructions[at])
            at = longest[at][1]
        return path


def find_cuobjdump() -> Path:
    """Return the path of cuobjdump: of the toolkit in CUDA_HOME, on PATH, or the one in Triton's wheel.

    Raises:
        FileNotFoundError: there is none.
    """
    spec = importlib.util.find_spec("triton")
    places = [Path(os.environ["CUDA_HOME"], "bin")] if os.environ.get("CUDA_HOME") else []
    places += [Path(found).parent for found in [shutil.which("cuobjdump")] if found]
    places += [Path(spec.origin).parent / "backends/nvidia/bin"] if spec and spec.origin else []
    for place in places:
        if (place / "cuobjdump").is_file():
            return place / "cuobjdump"
    raise FileNotFoundError("no cuobjdump in CUDA_HOME, on PATH or in a triton package")


def kernels(cuobjdump: Path, cubin: Path) -> dict[str, Kernel]:
    """Disassemble all kernels of ``cubin``, by mangled name."""

    def listing(flag: str) -> str:
        return subprocess.run([cuobjdump, flag, cubin], capture_output=True, text=True, check=True).stdout

    found: dict[str, Kernel] = {}
    for line in listing("-sass").splitlines():
        if "Function :" in line:
            name = line.split(":", 1)[1].strip()
            found[name] = kernel = Kernel(name)
        elif match := _LINE.match(line):
            address, predicate, opcode, operands = match.groups()
            kernel.instructions.append(Instruction(int(address, 16), predicate or "", opcode, operands.strip()))
    usage = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
    for name, registers, stack, local in usage.findall(listing("-res-usage")):
        found[name].registers, found[name].local = int(registers), int(stack) + int(local)
    return found
