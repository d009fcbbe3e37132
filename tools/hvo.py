#!/usr/bin/env python3
"""What HVO (HugeTLB Vmemmap Optimization) gives back on this machine, and a model that fits only with it. Needs root, a
kernel with CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP, and an empty pool; leaves pool and switch as they were.

  hvo.py gain [--gib 8] [-r 5]           a pool with HVO off, then on: `doctor`'s figure beside MemAvailable
  hvo.py fits -m MODEL [--ctx N]         fills the memory so that the model, its context and what must stay free do not
                                         fit without HVO; shows that they do not, and that with HVO they do
"""
import argparse
import json
import mmap
import statistics
import subprocess
import sys
import time

POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
SWITCH = "/proc/sys/vm/hugetlb_optimize_vmemmap"
# What HVO frees goes to per-CPU lists of free pages first, and MemAvailable leaves those out: of 112 MiB it showed 10 to 26,
# the lists had the rest (`count:` in /proc/zoneinfo). With this setting, other than 0, the lists stay short.
LISTS, SHORT = "/proc/sys/vm/percpu_pagelist_high_fraction", 100_000
MIB = 1 << 20
GAIN_BYTES = 7 * 4096  # of each 2 MiB page: 8 pages of struct page, of which one stays


def write(path, value):
    with open(path, "w") as f:
        f.write(str(value))


def read(path):
    with open(path) as f:
        return int(f.read())


def pool(pages):
    write(POOL, pages)
    if read(POOL) != pages:
        sys.exit(f"the kernel found only {read(POOL)} of {pages} huge pages")


def available_now():
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("MemAvailable:")) * 1024


def available():
    """MemAvailable once it has come to rest: pages leave the per-CPU lists within some seconds, and a virtual machine
    reports freed pages to its host in batches that are not available meanwhile."""
    seen = []
    for _ in range(60):
        time.sleep(0.5)
        seen.append(available_now())
        if len(seen) > 10 and max(seen[-8:]) - min(seen[-8:]) < 2 * MIB:
            break
    return statistics.median(seen[-8:])


def compact():
    write("/proc/sys/vm/drop_caches", 3)
    write("/proc/sys/vm/compact_memory", 1)


def brim(binary, *words):
    return subprocess.run([binary, *map(str, words)], capture_output=True, text=True)


def gain(a):
    pages = a.gib * 512
    said, seen = [], []
    for round in range(a.r):
        free = {}
        for on in (0, 1):
            pool(0)
            write(SWITCH, on)
            compact()
            pool(pages)
            free[on] = available()
            if on:
                said.append(json.loads(brim(a.binary, "doctor", "--json").stdout)["hvo"]["given_back_bytes"])
        seen.append(free[1] - free[0])
    said, seen, expected = statistics.median(said), statistics.median(seen), pages * GAIN_BYTES
    print(f"pool of {pages} pages: doctor says {said / MIB:.1f} MiB given back, MemAvailable {seen / MIB:.1f} MiB more "
          f"with HVO on (median of {a.r}), the formula {expected / MIB:.1f} MiB")
    apart = abs(said - seen) / said if said else 1
    print(f"apart by {100 * apart:.1f} %: {'confirmed' if apart <= 0.15 else 'NOT confirmed'}")
    return apart <= 0.15


def fits(a):
    plan = json.loads(brim(a.binary, "plan", "-m", a.model, "--ctx", a.ctx, "--hugepages", "--json").stdout)
    pages = plan["total_pages"]
    print(f"{a.model} with {a.ctx} tokens of context: {pages} pages, {pages * 2} MiB; HVO gives {pages * GAIN_BYTES / MIB:.0f} MiB back")
    board = "/tmp/brim-hvo.toml"
    write(board, f"[memory]\nhugepages = true\nkeep_free_mib = {a.keep_free_mib}\n")
    words = ["-m", a.model, "--ctx", a.ctx, "--board", board]
    results, filler = {}, None
    for on in (0, 1):
        pool(0)
        write(SWITCH, on)
        compact()
        pool(pages)
        if filler is None:
            # Half of what HVO will give back is missing. Little by little, for MemAvailable is an estimate.
            filler, target = [], a.keep_free_mib * MIB - pages * GAIN_BYTES // 2
            for _ in range(20):
                bytes_ = int(available() - target) * 3 // 4 // 4096 * 4096
                if bytes_ < 2 * MIB:
                    break
                filler.append(mmap.mmap(-1, bytes_, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
                for offset in range(0, bytes_, 4096):
                    filler[-1][offset] = 1
            print(f"filled {sum(map(len, filler)) // MIB} MiB of ordinary memory")
        state = "on" if on else "off"
        print(f"HVO {state}: {available() / MIB:.0f} MiB available, {a.keep_free_mib} must stay free")
        planned = brim(a.binary, "plan", *words)
        ran = brim(a.binary, "run", *words, "--raw", "-p", "Hello", "-n", "4", "--temp", "0")
        for name, result in (("plan", planned), ("run", ran)):
            last = (result.stderr.strip().splitlines() or [""])[-1]
            print(f"  brim {name}: exit {result.returncode}; {last}")
        results[on] = (planned.returncode, ran.returncode)
    good = results == {0: (5, 5), 1: (0, 0)}
    print("does not fit without HVO, fits with it" if good else "NOT shown")
    return good


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["gain", "fits"])
    ap.add_argument("--binary", default="target/release/brim")
    ap.add_argument("--gib", type=int, default=8)
    ap.add_argument("-r", type=int, default=5)
    ap.add_argument("-m", "--model")
    ap.add_argument("--ctx", type=int, default=40960)
    ap.add_argument("--keep-free-mib", type=int, default=1024)
    a = ap.parse_args()
    if a.what == "fits" and not a.model:
        ap.error("fits needs -m MODEL")
    # Where the kernel loses pages that are given back with HVO on, this would lose a pool of them.
    give_back = json.loads(brim(a.binary, "doctor", "--json").stdout)["give_back"]
    if give_back != "works":
        sys.exit(f"giving pages back with HVO on: {give_back or 'not tried'}; see `brim doctor`")
    before, switch = read(POOL), read(SWITCH)
    if before:
        sys.exit(f"the pool has {before} pages: give them back first")
    lists = read(LISTS)
    write(LISTS, SHORT)
    try:
        good = gain(a) if a.what == "gain" else fits(a)
    finally:
        write(POOL, before)
        write(SWITCH, switch)
        write(LISTS, lists)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
