"""Stanford Online Products: Song, Xiang, Jegelka, Savarese, Deep Metric Learning via Lifted Structured Feature
Embedding, CVPR 2016, arXiv 1511.06452."""

from pathlib import Path

from .benchmark import Benchmark, Counts
from .images import FileImages, RetrievalData

BENCHMARK = Benchmark(
    name="Stanford Online Products",
    page="https://cvgl.stanford.edu/projects/lifted_struct/",
    tree="""\
  Stanford_Online_Products/
    Ebay_train.txt
    Ebay_test.txt
    bicycle_final/*.JPG, ... 12 folders""",
    counts={"train": Counts(59551, 11318), "query": Counts(60502, 11316)},
)


def sop(data_dir: Path | None = None) -> RetrievalData:
    """Stanford Online Products, as its two lists divide it.

    Args:
        data_dir: the unpacked folder, or the one around it.

    Raises:
        UserError: the folder, a list or an image is missing, or not what was published.
    """
    root = BENCHMARK.find(data_dir, "Ebay_train.txt")
    return RetrievalData(_part(root, "train", "Ebay_train.txt"), _part(root, "query", "Ebay_test.txt"))


def _part(root: Path, name: str, file: str) -> FileImages:
    columns = {"image_id": int, "class_id": int, "super_class_id": int, "path": str}
    rows = [(path, number) for _, number, _, path in BENCHMARK.table(root / file, columns, header=1)]
    # Classes have numbers alone; the folder says what kind of product it is.
    names = {number: f"{path.split('_final/')[0]} {number}" for path, number in rows}
    return BENCHMARK.part(name, root, rows, names)
