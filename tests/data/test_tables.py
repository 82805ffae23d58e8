import gzip

import pytest

from jaxformer.data.sources import shuffled
from jaxformer.data.tables import ClassFolders, Csv, Tsv
from jaxformer.errors import InputError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return (str(path),)


def test_a_csv_has_quotes_and_line_ends_in_them(tmp_path):
    paths = write(tmp_path / "a.csv", '\ufefftext,label\r\n"a ""good"" one,\r\nsaid he",1\r\n\r\nplain,0\r\n')
    assert list(Csv(paths).open()) == [
        {"text": 'a "good" one,\r\nsaid he', "label": "1"},
        {"text": "plain", "label": "0"},
    ]


def test_quotes_of_a_tsv_are_text_unless_it_is_said(tmp_path):
    paths = write(tmp_path / "a.tsv", 'text\tlabel\n"Well\t1\n')
    assert list(Tsv(paths).open()) == [{"text": '"Well', "label": "1"}]
    paths = write(tmp_path / "b.tsv", '"a\tb"\t1\n')
    assert list(Tsv(paths, ("text", "label"), quoted=True).open()) == [{"text": "a\tb", "label": "1"}]


def test_several_files_one_of_them_compressed(tmp_path):
    write(tmp_path / "a.csv", "text,label\na,1\n")
    write(tmp_path / "b.csv.gz", gzip.compress(b"label,text\n0,b\n"))
    rows = Csv((str(tmp_path / "*.csv*"),)).open()
    assert list(rows) == [{"text": "a", "label": "1"}, {"label": "0", "text": "b"}]
    assert len(shuffled(rows, 0)) > 2 and sorted(shuffled(rows, 0)[n] for n in range(2)) == [0, 1]


@pytest.mark.parametrize(
    "content, words",
    [
        ("text,label\na,1\nb\n", "a.csv: line 3 has 1 values; expected 2: text, label"),
        ("text,label\n", "a.csv: has no rows"),
        ("", "a.csv: has no rows"),
        ("text,text\na,1\n", "names a column twice"),
        ('text,label\n"a,1\n', "a.csv: line 2: unexpected end of data"),
        (b"text,label\n\xff,1\n", "a.csv: not UTF-8 at byte 11"),
    ],
)
def test_what_is_no_table_is_said_in_one_line(tmp_path, content, words):
    with pytest.raises(InputError, match=words) as caught:
        Csv(write(tmp_path / "a.csv", content)).open()
    assert "\n" not in str(caught.value)


def test_a_folder_for_each_class(tmp_path):
    for label, name, text in [("pos", "1.txt", "fine \n"), ("neg", "2.txt", "dull"), ("neg", "1.txt", "poor")]:
        (tmp_path / label).mkdir(exist_ok=True)
        write(tmp_path / label / name, text)
    write(tmp_path / "README", "no class")
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".git" / "config", "no class")
    assert list(ClassFolders(str(tmp_path)).open()) == [
        {"text": "poor", "label": "neg"},
        {"text": "dull", "label": "neg"},
        {"text": "fine", "label": "pos"},
    ]
    with pytest.raises(InputError, match="pos: expected a folder for each class"):
        ClassFolders(str(tmp_path / "pos")).open()
    with pytest.raises(InputError, match="nowhere: no such folder"):
        ClassFolders(str(tmp_path / "nowhere")).open()
