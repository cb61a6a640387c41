"""A round of PFedRec as published code computes it: dense, in PyTorch, one client after the other.

    python -m venv /tmp/torchenv
    /tmp/torchenv/bin/pip install numpy
    /tmp/torchenv/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
    /tmp/torchenv/bin/python benchmarks/dense_pytorch.py RATINGS [--rounds N] [--clients N] [--lean]

A wheel of torch for GPUs does as well; only the CPU is used, with one thread.

Every client holds a deep copy of the whole item table and an ``nn.Linear`` score function. For every batch of
256 there is a step of SGD on the score function, a new forward, and one on the table, with the same learning
rates as ours. The server averages all clients' dense tables. Batches come from a ``DataLoader`` over a data
set of samples, as is usual; with ``--lean`` they are cut from shuffled tensors instead. Negatives are drawn
by our own sampler. Each round ends with ranking the validation and the test item among 99 others in each
client's own model.

This file was written for this comparison, from the paper's description. It prints one JSON object.
"""

import argparse
import copy
import importlib
import json
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

# The environment of PyTorch has no pfedrec-edge; what is used of it here needs numpy only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer.datasets import parse_ratings
from trainer.metrics import metrics_from_ranks, ranks_among_candidates
from trainer.params import paper_hyperparameters
from trainer.sampling import NegativeSampler
from trainer.splits import leave_one_out, sampled_candidates

torch: Any = importlib.import_module("torch")
_DIM = 32


def new_model(n_items: int) -> Any:
    """Give an item table and a score function, in PyTorch's own terms."""
    table = torch.nn.Embedding(n_items, _DIM)
    torch.nn.init.normal_(table.weight)
    return torch.nn.Sequential(
        OrderedDict(table=table, score=torch.nn.Linear(_DIM, 1), logistic=torch.nn.Sigmoid())
    )


class Samples:
    """A client's samples, as a ``DataLoader`` takes them."""

    def __init__(self, items: Any, labels: Any) -> None:
        self._items = items
        self._labels = labels

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._items[index], self._labels[index]


class Round:
    """Makes rounds of a fleet.

    Parameters
    ----------
    n_clients : int or None
        Only the first so many users take part.
    lean : bool
        Cut batches from tensors.
    """

    def __init__(self, ratings: Path, n_clients: int | None, *, lean: bool) -> None:
        self._lean = lean
        data = parse_ratings(ratings.read_bytes(), str(ratings))
        self.split = leave_one_out(data, np.random.default_rng([0, 7]))
        rng = np.random.default_rng([0, 2])
        self.val, self.test = sampled_candidates(self.split, rng)
        self.clients = list(range(data.n_users))[:n_clients]
        self.n_users = data.n_users
        self._rng = np.random.default_rng([0, 3])
        self._hyperparameters = paper_hyperparameters(data.n_items)
        self._model = new_model(data.n_items)
        self._functions = [copy.deepcopy(self._model.score.state_dict()) for _ in self.clients]
        # Published: the negatives of training avoid the held-out items, too.
        self._samplers = [
            NegativeSampler.excluding(data.n_items, self.split.known(user)) for user in self.clients
        ]

    def n_batches(self, user: int) -> int:
        """Count a user's batches in a round."""
        samples = self.split.train[user].size * (1 + self._hyperparameters.negatives)
        return -(-samples // self._hyperparameters.batch_size)

    def make(self) -> float:
        """Train all clients, average, evaluate; give HR@10 of the test items."""
        tables = []
        ranks = np.empty(len(self.clients), dtype=np.int64)
        for line, user in enumerate(self.clients):
            model = copy.deepcopy(self._model)
            model.score.load_state_dict(self._functions[line])
            self._train(model, self._batches(line, user))
            self._functions[line] = copy.deepcopy(model.score.state_dict())
            tables.append(copy.deepcopy(model.table.weight.data))
            ranks[line] = self._ranks(model, user)[1]
        average = torch.zeros_like(self._model.table.weight.data)
        for table in tables:
            average += table
        self._model.table.weight.data = average / len(tables)
        return metrics_from_ranks(ranks).hr

    def _batches(self, line: int, user: int) -> Iterable[tuple[Any, Any]]:
        positives = self.split.train[user]
        negatives = self._samplers[line].draw(self._hyperparameters.negatives * positives.size, self._rng)
        items = torch.from_numpy(np.concatenate((positives, negatives)))
        labels = torch.zeros(len(items))
        labels[: positives.size] = 1.0
        size = self._hyperparameters.batch_size
        if not self._lean:
            batches: Iterable[tuple[Any, Any]] = torch.utils.data.DataLoader(
                Samples(items, labels), batch_size=size, shuffle=True
            )
            return batches
        order = torch.randperm(len(items))
        return zip(items[order].split(size), labels[order].split(size), strict=True)

    def _train(self, model: Any, batches: Iterable[tuple[Any, Any]]) -> None:
        loss_of = torch.nn.BCELoss()
        of_function = torch.optim.SGD(model.score.parameters(), lr=self._hyperparameters.lr)
        of_table = torch.optim.SGD(model.table.parameters(), lr=self._hyperparameters.item_lr)
        for items, labels in batches:
            for optimizer in (of_function, of_table):
                of_function.zero_grad()
                of_table.zero_grad()
                loss_of(model(items).view(-1), labels).backward()
                optimizer.step()

    def _ranks(self, model: Any, user: int) -> tuple[int, int]:
        with torch.no_grad():
            val, test = (
                ranks_among_candidates(model(torch.from_numpy(rows)).view(1, -1).numpy())
                for rows in (self.val[user], self.test[user])
            )
        return int(val[0]), int(test[0])


def main() -> None:
    """Measure, and print the median."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ratings", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, help="only the first N, and scale by the number of batches")
    parser.add_argument("--lean", action="store_true", help="cut batches from tensors; no DataLoader")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fleet = Round(options.ratings, options.clients, lean=options.lean)
    seconds, processor, hr = [], [], 0.0
    for _ in range(options.rounds):
        began, processor_began = time.perf_counter(), time.process_time()
        hr = fleet.make()
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - processor_began)
    batches, of_all = (sum(map(fleet.n_batches, users)) for users in (fleet.clients, range(fleet.n_users)))
    print(
        json.dumps(
            {
                "seconds": median(seconds) * of_all / batches,
                "least": min(seconds) * of_all / batches,
                "processor": median(processor) * of_all / batches,
                "rounds": options.rounds,
                "clients": len(fleet.clients),
                "of": fleet.n_users,
                "hr@10": hr,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
