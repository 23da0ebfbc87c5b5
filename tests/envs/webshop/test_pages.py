"""Every page to the letter, and how one leads to the next."""

from dataclasses import replace

import pytest

from envs.webshop import pages
from envs.webshop.session import Session
from tests.envs.webshop.shelves import MUG, SHIRT, MemoryShelves, goal_of

TEXT = "Find me long sleeve men's shirts with color: navy blue, and size: large, and price lower than 30.00 dollars"
SEARCH = f"WebShop [SEP] Instruction: [SEP] {TEXT} [SEP] Search"
ITEM = (
    f"Instruction: [SEP] {TEXT} [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] black [SEP] navy blue [SEP] "
    "size [SEP] 8 | 9 [SEP] large [SEP] Acme Cotton Shirt for Men [SEP] Price: $19.99 to $29.99 [SEP] Rating: N.A. "
    "[SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
)
RESULTS = (
    f"Instruction: [SEP] {TEXT} [SEP] Back to Search [SEP] Page 1 (Total results: 2) [SEP] Next > [SEP] "
    "B01SHIRT01 [SEP] Acme Cotton Shirt for Men [SEP] $19.99 to $29.99 [SEP] B02MUG0002 [SEP] Steel Mug [SEP] $8.0"
)


def start(products=(SHIRT, MUG), **changes) -> Session:
    return Session(MemoryShelves(products), goal_of(**changes), corrected=False)


def play(session: Session, *actions: str) -> str:
    for action in actions:
        assert session.act(action), action
    return session.page.text


def test_search_page():
    session = start()
    assert session.page.text == SEARCH
    assert session.page.has_search_bar and session.page.clickables == ("search",)


def test_results_page():
    session = start()
    assert play(session, "search[shirt mug]") == RESULTS
    assert session.page.clickables == ("back to search", "next >", "b01shirt01", "b02mug0002")
    assert not session.page.has_search_bar


def test_ten_products_a_page_fifty_in_all_and_pages_without_end():
    products = [replace(MUG, asin=f"B{number:09d}") for number in range(60)]
    session = start(products)
    assert "Page 1 (Total results: 50) [SEP] Next > [SEP] B000000000 [SEP]" in play(session, "search[mug]")
    assert session.page.text.count("Steel Mug") == 10
    assert "Page 2 (Total results: 50) [SEP] < Prev [SEP] Next > [SEP] B000000010 [SEP]" in play(
        session, "click[next >]"
    )
    assert session.page.clickables[:3] == ("back to search", "< prev", "next >")
    empty = play(session, *["click[next >]"] * 4)
    assert empty.endswith("Back to Search [SEP] Page 6 (Total results: 50) [SEP] < Prev [SEP] Next >")
    assert session.page.clickables == ("back to search", "< prev", "next >")
    assert "Page 5 (Total results: 50)" in play(session, "click[< prev]")


def test_item_page():
    session = start()
    assert play(session, "search[shirt]", "click[b01shirt01]") == ITEM
    assert session.page.clickables == (
        *("back to search", "< prev", "description", "features", "reviews", "buy now"),
        *("black", "navy blue", "8 | 9", "large"),
    )
    assert play(session, "click[navy blue]") == ITEM  # what is chosen does not show


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("description", "A shirt with a pocket."),
        ("features", "Machine Wash only [SEP] Made of soft cotton"),
        ("reviews", "No reviews found"),
    ],
)
def test_sub_pages(name: str, content: str):
    session = start()
    text = play(session, "search[shirt]", "click[b01shirt01]", f"click[{name}]")
    assert text == f"Instruction: [SEP] {TEXT} [SEP] Back to Search [SEP] < Prev [SEP] {content}"
    assert session.page.clickables == ("back to search", "< prev")
    assert play(session, "click[< prev]") == ITEM


def test_done_page():
    session = start()
    receipt = play(session, "search[shirt]", "click[b01shirt01]", "click[large]", "click[navy blue]", "click[buy now]")
    assert receipt == (
        "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk interface.) [SEP] "
        'Purchased [SEP] asin [SEP] B01SHIRT01 [SEP] options [SEP] {"color": "navy blue", "size": "large"} [SEP] attrs '
        "[SEP] None [SEP] category [SEP] None [SEP] query [SEP] None [SEP] product category [SEP] None [SEP] Target "
        "[SEP] asin [SEP] options [SEP] attrs [SEP] price upper [SEP] instuction text [SEP] category [SEP] product "
        "category [SEP] query [SEP] Goal [SEP] None [SEP] Reward [SEP] Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] "
        "Reward Details [SEP] None"
    )
    assert session.reward.total == 1.0 and session.page.clickables == ()


def test_blanks_as_the_official_parser_leaves_them():
    product = replace(
        SHIRT, title="  Two  \n words ", description=" \n ", bullet_points=("", " ", "soft"), options={"color": ("",)}
    )
    title = pages.item_page("i", product).text
    assert title == (
        "Instruction: [SEP] i [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] Two  \n words [SEP] Price: $19.99 to "
        "$29.99 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    assert pages.sub_page("i", product, "description").text.endswith("< Prev")
    assert pages.sub_page("i", product, "features").text.endswith("< Prev [SEP]  [SEP] soft")


def test_previous_leads_to_the_results_and_forgets_the_choices():
    session = start()
    play(session, "search[shirt mug]", "click[b01shirt01]", "click[large]")
    assert play(session, "click[< prev]") == RESULTS
    play(session, "click[b01shirt01]", "click[navy blue]", "click[buy now]")
    assert session.reward.num_options == 1


def test_choices_outlive_a_sub_page_and_a_later_value_replaces_an_earlier_one():
    session = start()
    play(session, "search[shirt]", "click[b01shirt01]", "click[large]", "click[black]", "click[features]")
    play(session, "click[< prev]", "click[navy blue]", "click[buy now]")
    assert session.reward.num_options == 2


def test_back_to_search_begins_anew():
    session = start()
    assert play(session, "search[shirt]", "click[b01shirt01]", "click[back to search]") == SEARCH


def test_search_works_on_every_page():
    session = start()
    for page in ("search[shirt]", "click[b01shirt01]", "click[description]"):
        play(session, page)
        copy = start()
        assert play(copy, "search[shirt]", "search[Shirt MUG]") == RESULTS
    assert play(session, "search[shirt mug]") == RESULTS


def test_special_search_words_are_plain_words():
    shelves = MemoryShelves([SHIRT])
    session = Session(shelves, goal_of(), corrected=False)
    assert session.act("search[<r> Shirt]")
    assert shelves.queries == ["<r> shirt"]


def test_an_option_named_like_a_button_gives_way_to_it():
    product = replace(SHIRT, options={"style": ("description", "search", "plain")})
    session = start((product,))
    play(session, "search[shirt]", "click[b01shirt01]")
    assert session.page.clickables.count("description") == 1
    assert not session.act("click[search]")
    assert play(session, "click[description]").endswith("A shirt with a pocket.")


@pytest.mark.parametrize(
    "action",
    [
        *("", "buy now", "click[]", "click", "search[]", "search", "click[search]", "Click[next >]", "find[shirt]"),
        *("click[b02mug0002]", "click[buy now]", "click[[search]]", "search[a\nb]", " click[next >]"),
    ],
)
def test_what_the_shop_does_not_understand_changes_nothing(action: str):
    session = start()
    page = session.page
    assert not session.act(action)
    assert session.page is page and session.reward is None


def test_clicks_are_lowered_and_text_after_the_last_bracket_is_ignored():
    session = start()
    assert session.act("search[shirt] please")
    assert session.act("click[B01SHIRT01]")
    assert session.page.text == ITEM


def test_nothing_changes_after_the_purchase():
    session = start()
    receipt = play(session, "search[shirt]", "click[b01shirt01]", "click[buy now]")
    assert not session.act("search[mug]") and not session.act("click[back to search]")
    assert session.page.text == receipt
