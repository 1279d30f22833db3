"""Side-by-side benchmarks: modalign beside what a user would write instead, in one run, as ratios.

`make bench` measures the rows of all topics and prints one table. A topic is a module here, named in `TOPICS` of
`bench.__main__`, with a tuple `ROWS` of `bench.row.Row`. To write a row:

1. Write a context manager that takes the size (`size`, or `small` in the tests) and prepares everything that is not to
   be timed. It yields `Sides(ours, theirs)`: two functions without arguments that do the same work. Warm both up and
   compare their results there: a row of unequal work must raise.
2. A function that has something to prepare or to throw away in every turn returns the seconds (or MiB) itself.
   Otherwise it returns None and its call is timed. A call should take a tenth of a second or more: loop inside.
3. Raise `LeftOut` where something is missing that the row needs. `bench.server.server` does so without a Qdrant server.
4. Say in `asked` what both sides are asked, settings included. Add what is known only once both are set up, as an
   `hnsw_ef` that was tuned, as the `note` of `Sides`.
5. The row of `size` should take a minute at most on two cores; `make bench` takes twenty minutes.

    ROWS = (
        Row(
            what="push {size} x 256 into Edge, index not built",
            against="the best loop by hand",
            asked="Both write the same ids, vectors and payloads.",
            unit="rate",
            goal=0.9,
            size=20_000,
            small=200,
            sides=push_beside_loop,
        ),
    )

Topics whose turns take minutes are named in `SLOW_TOPICS`: their rows are in the table, and run by name only. So do
benchmarks that are no such ratio, which are named in `OTHERS`.
"""
