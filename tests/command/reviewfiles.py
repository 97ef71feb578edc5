"""Made-up film reviews and files of them."""

import csv
import json
import random

WORDS = ["good", "fine", "great", "bad", "poor", "awful", "film", "plot", "actor", "scene", "is", "the", "a", "very"]
GOOD, BAD = WORDS[:3], WORDS[3:6]


def reviews(count, seed=0):
    """Rows whose class follows from the first word; a film has about five of them."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        fresh = number % 2
        words = [rng.choice(WORDS[6:]) for _ in range(rng.randint(2, 8))]
        words.insert(0, rng.choice(GOOD if fresh else BAD))
        rows.append(
            {
                "text": " ".join(words),
                "other": rng.choice(WORDS),
                "label": "fresh" if fresh else "rotten",
                "stars": str(fresh * 3 + rng.random()),
                "film": f"film {number % max(1, count // 5)}",
            }
        )
    return rows


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
