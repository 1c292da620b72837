"""In-Shop Clothes Retrieval: Liu, Luo, Qiu, Wang, Tang, DeepFashion, CVPR 2016."""

from pathlib import Path

from .benchmark import Benchmark, Counts
from .images import RetrievalData

BENCHMARK = Benchmark(
    name="In-Shop Clothes Retrieval",
    page="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
    tree="""\
  In-shop Clothes Retrieval Benchmark/
    Eval/list_eval_partition.txt             or   list_eval_partition.txt
    Img/img/WOMEN/..., Img/img/MEN/...   or   img/WOMEN/..., img/MEN/...""",
    counts={"train": Counts(25882, 3997), "query": Counts(14218, 3985), "gallery": Counts(12612, 3985)},
)


def inshop(data_dir: Path | None = None) -> RetrievalData:
    """In-Shop Clothes Retrieval, as its list divides it: the queries search among a gallery of their own.

    Args:
        data_dir: the unpacked folder, or the one around it.

    Raises:
        UserError: the folder, the list or an image is missing, or not what was published.
    """
    places = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
    root = BENCHMARK.find(data_dir, *places)
    file = next(root / place for place in places if (root / place).exists())
    parts = {name: [] for name in BENCHMARK.counts}
    columns = {"image_name": str, "item_id": str, "evaluation_status": str}
    # The paper's code numbers the items of all parts as they come, and has outputs up to the last that trains.
    numbers: dict[str, int] = {}
    outputs = 0
    for path, item, part in BENCHMARK.table(file, columns, header=2):
        if part not in parts:
            raise BENCHMARK.error(f"{path} in {file} is for {part!r}, but must be for {', '.join(parts)}")
        parts[part].append((path, item))
        number = numbers.setdefault(item, len(numbers))
        if part == "train":
            outputs = max(outputs, number + 1)
    # What the list calls img/... is in Img/ where img.zip was unpacked beside itself.
    images = root / "Img" if (root / "Img" / "img").is_dir() else root
    data = RetrievalData(
        **{name: BENCHMARK.part(name, images, rows, {item: item for _, item in rows}) for name, rows in parts.items()},
        outputs=outputs,
    )
    if data.query.names != data.gallery.names:
        raise BENCHMARK.error(f"the queries and the gallery in {file} are not of the same items")
    return data
