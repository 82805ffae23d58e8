import gzip
import re

import pytest

from jaxformer.data.sources.order import shuffled
from jaxformer.data.sources.sources import JsonLines, ParallelFiles, TextFiles
from jaxformer.data.sources.tables import ClassFolders, Csv, Tsv
from jaxformer.errors import InputError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return (str(path),)


def test_csv_reads_quotes_with_line_ends(tmp_path):
    paths = write(tmp_path / "a.csv", '\ufefftext,label\r\n"a ""good"" one,\r\nsaid he",1\r\n\r\nplain,0\r\n')
    assert list(Csv(paths).open()) == [
        {"text": 'a "good" one,\r\nsaid he', "label": "1"},
        {"text": "plain", "label": "0"},
    ]


def test_tsv_quotes_are_text_by_default(tmp_path):
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
        ("text,text\na,1\n", "contains a column name twice"),
        ('text,label\n"a,1\n', "a.csv: line 2: unexpected end of data"),
        (b"text,label\n\xff,1\n", "a.csv: not UTF-8 at byte 11"),
    ],
)
def test_errors_in_tables_are_one_line(tmp_path, content, words):
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


def test_another_delimiter_and_blanks_in_the_header(tmp_path):
    paths = write(tmp_path / "a.csv", 'text; label\n"a; b"; yes\n')
    assert list(Csv(paths, delimiter=";").open()) == [{"text": "a; b", "label": " yes"}]


@pytest.mark.parametrize(
    "content, words",
    [
        ("text;label\na;1\n", "its first row has no ',', and ';' in 'text;label'; set delimiter to ';'"),
        ("text\tlabel\na\t1\n", "use Tsv"),
        ("text|label\na, b|1\n", "set delimiter to '|'"),
    ],
)
def test_a_header_with_another_delimiter_gets_a_suggestion(tmp_path, content, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        Csv(write(tmp_path / "a.csv", content)).open()
    assert "\n" not in str(caught.value)
    assert len(Csv(write(tmp_path / "a.csv", content), columns=("all",), delimiter="~").open()) == 2


def test_invalid_table_fields_are_refused():
    for fields, words in [({"delimiter": ";;"}, "delimiter=';;'"), ({"delimiter": ""}, "delimiter=''")]:
        with pytest.raises(InputError, match=words):
            Csv(**fields)
    for encoding in ("utf-9", "rot13", "base64"):
        for make in (Csv, Tsv, TextFiles, JsonLines, lambda encoding: ClassFolders("x", encoding)):
            with pytest.raises(InputError, match=f"encoding '{encoding}': not known; expected a name such as utf-8"):
                make(encoding=encoding)


def test_all_rows_with_other_values_are_listed(tmp_path):
    paths = write(tmp_path / "a.csv", 'text,label\na,1\nb\n"c\nc",1\nd,1,2\n' + "e\n" * 20)
    with pytest.raises(InputError) as caught:
        Csv(paths).open()
    first, second, *_, last = str(caught.value).split("; expected 2: text, label; ")
    assert (first, second) == (f"{paths[0]}: line 3 has 1 values", f"{paths[0]}: line 6 has 3 values")
    assert last == "and 12 more" and str(caught.value).count("has 1 values") == 9


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8-sig", "shift_jis", "gb18030"])
def test_other_encodings(tmp_path, encoding):
    word = "日本" if encoding in ("shift_jis", "gb18030") else "Größe"
    (tmp_path / "set" / word).mkdir(parents=True)
    for name, content in [
        ("a.csv", f"text,label\n{word},1\n"),
        ("a.tsv", f"text\tlabel\n{word}\t1\n"),
        ("a.txt", f"{word}\n\n{word} 2\n"),
        ("a.jsonl", f'{{"text": "{word}"}}\n'),
        (f"set/{word}/1", word),
    ]:
        write(tmp_path / name, content.encode(encoding))
    path = str(tmp_path / "a")
    assert Csv((f"{path}.csv",), encoding=encoding).open()[0]["text"] == word
    assert Tsv((f"{path}.tsv",), encoding=encoding).open()[0]["text"] == word
    assert JsonLines((f"{path}.jsonl",), encoding).open()[0]["text"] == word
    assert list(ClassFolders(str(tmp_path / "set"), encoding).open()) == [{"text": word, "label": word}]
    text = TextFiles((f"{path}.txt",), encoding=encoding).open()
    assert [text[0]["text"], text[1]["text"]] == [word, f"{word} 2"] and text.place(1) == f"{path}.txt: line 3"
    pairs = ParallelFiles(f"{path}.txt", f"{path}.txt", encoding).open()
    assert pairs[1] == {"inputs": f"{word} 2", "targets": f"{word} 2"}


def test_undecodable_bytes_are_named_by_file_and_line(tmp_path):
    (tmp_path / "neg").mkdir()
    write(tmp_path / "neg" / "1", b"one\ntwo \xe9")
    documents = ClassFolders(str(tmp_path)).open()
    with pytest.raises(InputError, match=r"neg/1: not UTF-8 at byte 8 \(line 2\); set encoding to .* latin-1"):
        documents[0]
    with pytest.raises(InputError, match=r"a.csv: not ascii at byte 12 \(line 2\)"):
        Csv(write(tmp_path / "a.csv", b"text,label\nx\xe9,1"), encoding="ascii").open()


def test_an_empty_file_is_skipped_with_one_note(tmp_path, capsys):
    (tmp_path / "pos").mkdir()
    for name, content in [("1", "fine"), ("2", ""), ("3", "good")]:
        write(tmp_path / "pos" / name, content)
        write(tmp_path / f"{name}.csv", content and f"text,label\n{content},1\n")
        write(tmp_path / f"{name}.txt", content)
        write(tmp_path / f"{name}.jsonl", content and f'{{"text": "{content}"}}')
    sources = [
        ClassFolders(str(tmp_path)),
        *(
            kind((str(tmp_path / f"*.{end}"),))
            for kind, end in ((Csv, "csv"), (TextFiles, "txt"), (JsonLines, "jsonl"))
        ),
    ]
    for source in sources * 2:
        documents = source.open()
        assert [documents[n]["text"] for n in range(len(documents))] == ["fine", "good"]
    out, err = capsys.readouterr()
    assert out == "" and sorted(err.splitlines()) == sorted(
        f"note: {tmp_path}/{name}: skipped, empty; 2 of 3 files are read"
        for name in ("pos/2", "2.csv", "2.txt", "2.jsonl")
    )


def test_only_empty_files_are_refused(tmp_path):
    (tmp_path / "pos").mkdir()
    for name in ("1", "2"):
        write(tmp_path / "pos" / name, "")
    with pytest.raises(
        InputError, match="pos/1 and 1 more: the files are empty; give a file with at least one document"
    ):
        ClassFolders(str(tmp_path)).open()
