"""Tables: as data, with their numbers, and rendered.

Imports point down this page.

    publish.py   a table's files, rendered if something changed
    overview.py  every table of a scale as one page in HTML, the index, and a page for each run
    document.py  every table of a scale as one LaTeX document, and its PDF
    register.py  every claim of a scale's tables with its verdicts
    terminal.py  a table as plain text that fits a terminal
    render.py    files in six formats, and the index
    figures.py   drawings as SVG and PNG
    latex.py     a table as LaTeX: bare, and complete with its notes
    display.py   layout that all formats share
    illustrate.py  a table's figures, from its numbers and its runs' measurements
    filled.py    a table with its numbers
    drawing.py   a drawing as plain data
    origin.py    cost, code and environment of the runs behind a report, in words
    record.py    the record of a run as pages show it; cost in hours and kWh
    counts.py    finished runs on other data than the published
    observe.py   finished runs as one tidy frame, and runs.csv
    table.py     a table as data: cells, claims, runs
    plots.py     figures as data: what each shows
    verdicts.py  what our numbers show: claims, cells against the paper, emphasis
    claim.py     the paper's sentences as contrasts between cells
    stats.py     means, deviations, intervals and tests
    deviations.py  decisions that concern several tables
    markup.py    text with mathematics, escaped for each format
"""
