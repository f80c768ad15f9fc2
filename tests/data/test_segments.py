"""Segments of the XML files of IWSLT: real XML, joined by document and number."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainaug.data.segments import joined_segments, read_segments


def seg(number: object, text: str) -> str:
    return f'<seg id="{number}"> {text} </seg>'


def doc(number: object, *segments: str) -> str:
    return f'<doc docid="{number}">' + "".join(segments) + "</doc>"


@pytest.fixture
def pair(tmp_path):
    def pair(german: str, english: str) -> list[tuple[str, str]]:
        files = []
        for code, body in (("de", german), ("en", english)):
            files.append(tmp_path / f"set.{code}.xml")
            head = "" if body.startswith("<!DOCTYPE") else '<?xml version="1.0"?>\n'
            files[-1].write_text(f"{head}{body}", "utf-8")
        return [(a.strip(), b.strip()) for a, b in joined_segments(*files)]

    return pair


def root(*parts: str) -> str:
    return "<mteval>" + "".join(parts) + "</mteval>"


def test_texts_are_those_of_xml(pair) -> None:
    german = root(
        "<!-- " + seg(9, "weg") + " -->", "<?note x?>", seg(1, "<![CDATA[ a & <b> ]]>"),
        seg(2, "&#228; &lt;i&gt; &amp;amp;"), '<seg id="3"/>', seg(4, "<hl>ein</hl>s<br/>zwei"),
    )  # fmt: skip
    english = root(*(seg(i, f"{i}") for i in range(1, 5)))
    assert pair(german, english) == [
        *(("a & <b>", "1"), ("ä <i> &amp;", "2"), ("", "3"), ("eins zwei", "4"))
    ]


def test_names_in_either_case_and_with_a_prefix(pair) -> None:
    german = '<M><DOC DOCID="a"><SEG ID=" 1 ">eins</SEG></DOC></M>'
    english = '<x:m xmlns:x="u"><x:doc docid="a"><x:seg id="1">one</x:seg></x:doc></x:m>'
    assert pair(german, english) == [("eins", "one")]


ONE, TWO = (seg(1, "eins"), seg(2, "zwei")), (seg(1, "one"), seg(2, "two"))
BOTH = [("eins", "one"), ("zwei", "two")]
JOINED = {
    "in another order": (root(*ONE), root(*reversed(TWO))),
    "documents in another order": (
        root(doc("a", seg(1, "eins")), doc("b", seg(1, "zwei"))),
        root(doc("b", seg(1, "two")), doc("a", seg(1, "one"))),
    ),
    "documents without a name": (
        root(*(f"<doc>{seg(1, t)}</doc>" for t in ("eins", "zwei"))),
        root(*(f"<doc>{seg(1, t)}</doc>" for t in ("one", "two"))),
    ),
    "no numbers": (
        root("<seg>eins</seg><seg>zwei</seg>"),
        root("<seg>one</seg><p><seg>two</seg></p>"),
    ),
}


@pytest.mark.parametrize("case", JOINED)
def test_segments_are_joined_by_document_and_number(case, pair) -> None:
    assert pair(*JOINED[case]) == BOTH


UNJOINED = {
    "missing in the second": (root(*ONE), root(TWO[0]), r"has 2 sentences, .*en\.xml has no .*'2'"),
    "missing in the first": (root(ONE[1]), root(*TWO), r"de\.xml has no segment '1'"),
    "as many, others": (root(*ONE), root(TWO[0], seg(3, "x")), r"en\.xml has no segment '2'"),
    "another document": (
        root(doc("a", seg(1, "eins"))),
        root(doc("b", seg(1, "one"))),
        r"en\.xml has no segment '1' of document 'a'",
    ),
    "twice": (root(ONE[0], ONE[0]), root(TWO[0], TWO[0]), r"de\.xml: segment '1' occurs twice"),
    "twice in a document": (
        root(doc(5, ONE[0]), doc(5, ONE[0])),
        root(TWO[0]),
        r"de\.xml: segment '1' of document '5' occurs twice",
    ),
    "some numbers": (root(ONE[0], "<seg>x</seg>"), root(*TWO), r"de\.xml: some segments have an"),
    "numbers on one side": (root(ONE[0]), root("<seg>one</seg>"), r"en\.xml has no segment '1'"),
    "empty number": (root('<seg id="">x</seg>'), root(*TWO), r"de\.xml: a segment has an empty id"),
    "one in another": (root('<seg id="1"><seg id="2"/></seg>'), root(*TWO), r"de\.xml: segment"),
    "none": (root(), root(), r"de\.xml: no <seg> element"),
}


@pytest.mark.parametrize("case", UNJOINED)
def test_segments_that_do_not_fit_are_named(case, pair) -> None:
    german, english, message = UNJOINED[case]
    with pytest.raises(ValueError, match=message):
        pair(german, english)


REFUSED = {
    "entity": '<!DOCTYPE m [<!ENTITY a "b">]><m><seg id="1">&a;</seg></m>',
    "unused entity": '<!DOCTYPE m [<!ENTITY a "b">]><m><seg id="1">b</seg></m>',
    "file": '<!DOCTYPE m [<!ENTITY a SYSTEM "file:///etc/hosts">]><m><seg id="1">&a;</seg></m>',
    "parameter": '<!DOCTYPE m [<!ENTITY % a SYSTEM "http://127.0.0.1:9/x"> %a;]>'
    '<m><seg id="1">b</seg></m>',
    "laughs": '<!DOCTYPE m [<!ENTITY a "ha"><!ENTITY b "'
    + "&a;" * 1000
    + '"><!ENTITY c "'
    + "&b;" * 1000
    + '">]><m><seg id="1">&c;</seg></m>',
    "undeclared": '<!DOCTYPE m SYSTEM "m.dtd"><m><seg id="1">b&nbsp;</seg></m>',
    "name of HTML": '<m><seg id="1">b&nbsp;</seg></m>',
    "ampersand": '<m><seg id="1">a & b</seg></m>',
    "attribute without quotes": "<m><seg id=1>a</seg></m>",
    "unclosed": '<m><seg id="1">a</m>',
    "cut": '<m><seg id="1">a</seg>',
    "second root": '<m><seg id="1">a</seg></m><m/>',
    "declared as another encoding": '<?xml version="1.0" encoding="ISO-8859-1"?><m/>',
    "empty": "",
}


@pytest.mark.parametrize("case", REFUSED)
def test_xml_that_is_not_read_is_named(case, tmp_path) -> None:
    file = tmp_path / "set.xml"
    file.write_text(REFUSED[case])
    with pytest.raises(ValueError, match=r"set\.xml: (declare|has the undecl|not well)") as caught:
        read_segments(file)
    assert type(caught.value) is ValueError


def test_document_type_alone_and_depth_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "set.xml"
    deep = "<a>" * 20_000 + seg(1, "b") + "</a>" * 20_000
    file.write_text(f'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/mteval.dtd">\n{deep}')
    assert read_segments(str(file)) == {("", "1"): " b "}
