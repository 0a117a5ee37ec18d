"""What every HTTP peer answers, so that all do the same work."""

#: As JSON about 1 KiB: what a list of a game's players or a page of a shop's orders looks like.
DOCUMENT = {
    "page": 1,
    "pages": 12,
    "players": [
        {"id": 1000 + n, "name": f"player-{n}", "score": n * 37.5, "online": n % 2 == 0, "tags": ["red", "north"]}
        for n in range(12)
    ],
}
