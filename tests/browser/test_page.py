"""The table of adapters and the playground in a real browser, before a real server."""

from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from support.e2e.page import ADAPTERS, answers, choose, footer, names, press, until, write

ANSWERS = {"upper": "HELLO WORLD", "rot13": "uryyb jbeyq", "reverse": "world hello"}
# Answers the list of adapters with a thousand of them, and counts the answers.
MANY = """
const real = window.fetch;
window.polls = 0;
window.fetch = async (path, options) => {
  const answer = await real(path, options);
  if (path !== '/adapters') return answer;
  const told = await answer.json();
  const one = told.adapters[0];
  window.polls += 1;
  told.adapters = Array.from({length: 1000}, (_, i) =>
    ({...one, id: `team-${i % 7}/adapter-${String(i).padStart(4, "0")}`, tokens: i * polls}));
  return new Response(JSON.stringify(told));
};
"""
# Holds the next list back until LATE is told to go on, and then has no adapters in it.
LATE = """
const real = window.fetch;
window.counts = [];
new MutationObserver(() => window.counts.push(document.getElementById('count').textContent))
  .observe(document.getElementById('count'), {childList: true});
window.fetch = async (path, options) => {
  const answer = await real(path, options);
  if (path !== '/adapters' || window.release) return answer;
  const told = {...await answer.json(), adapters: []};
  await new Promise((resolve) => { window.release = resolve; });
  return new Response(JSON.stringify(told));
};
"""
# Records how long every answer was whenever one of them grew.
WATCH = """
window.seen = [];
new MutationObserver(() => window.seen.push(Object.fromEntries(
  [...document.querySelectorAll('article')].map(
    (each) => [each.dataset.adapter, each.querySelector('pre').textContent.length]))
)).observe(document.getElementById('answers'), {childList: true, subtree: true});
"""
# Presses Stop as soon as there is any text.
STOP = """
new MutationObserver((_, self) => {
  if (!document.querySelector('article pre').textContent) return;
  self.disconnect();
  document.getElementById('stop').click();
}).observe(document.getElementById('answers'), {childList: true, subtree: true});
"""
# Holds what is asked for back until it is told to go on, and counts it and the lists of adapters.
HOLD = """
const real = window.fetch;
const held = new Promise((resolve) => { window.release = resolve; });
window.held = 0;
window.lists = 0;
window.fetch = async (path, options) => {
  if (path === '/adapters') window.lists += 1;
  if (path === '/generate_stream') { window.held += 1; await held; }
  return real(path, options);
};
"""
# Ends the next answer after its first event.
CUT = """
const real = window.fetch;
window.fetch = async (path, options) => {
  const answer = await real(path, options);
  if (path !== '/generate_stream') return answer;
  const first = (await answer.text()).split('\\n\\n')[0];
  return new Response(first + '\\n\\n');
};
"""


def test_it_lists_the_adapters(page: Chrome) -> None:
    assert set(names(page)) == ADAPTERS
    assert names(page) == sorted(ADAPTERS)
    page.find_element(By.CSS_SELECTOR, "[data-key=id] button").click()
    assert names(page) == sorted(ADAPTERS, reverse=True)
    page.find_element(By.ID, "filter").send_keys("R")
    assert set(names(page)) == {"upper", "reverse", "rot13"}
    assert page.find_element(By.ID, "count").text == "3 of 7"


def test_three_adapters_side_by_side(page: Chrome) -> None:
    """All of them grow at the same time; on a busy machine one run may be too quick to see that."""
    choose(page, *ANSWERS)
    page.execute_script(WATCH)
    seen: list[dict[str, int]] = []
    for _ in range(5):
        run_all(page)
        seen = page.execute_script("return seen")
        if any(grows_together(lengths) for lengths in seen):
            break
    assert any(grows_together(lengths) for lengths in seen)
    for name in ANSWERS:
        assert len({lengths.get(name, 0) for lengths in seen}) > 2


def run_all(page: Chrome) -> None:
    expected = {"(base model)": "hello world", **ANSWERS}
    page.find_element(By.ID, "run").click()
    until(page, lambda: answers(page) == expected)
    until(page, lambda: all("tokens/s" in footer(page, name) for name in expected))
    articles = page.find_elements(By.TAG_NAME, "article")
    until(page, lambda: {each.get_attribute("aria-busy") for each in articles} == {"false"})


def grows_together(lengths: dict[str, int]) -> bool:
    return all(0 < lengths.get(name, 0) < len(answer) for name, answer in ANSWERS.items())


def test_tokens_are_counted(page: Chrome) -> None:
    def counted(title: str) -> int:
        script = (
            "const titles = [...document.querySelectorAll('th')].map(e => e.innerText);"
            "const row = [...document.querySelectorAll('#rows tr')]"
            ".find(r => r.cells[0].innerText === 'upper');"
            "return Number(row.cells[titles.indexOf(arguments[0])].innerText)"
        )
        return page.execute_script(script, title)

    requests, tokens = counted("Requests"), counted("Tokens")
    choose(page, "upper")
    page.find_element(By.ID, "run").click()
    until(page, lambda: counted("Requests") == requests + 1 and counted("Tokens") > tokens + 1)


def test_a_list_that_comes_late_is_old(page: Chrome) -> None:
    page.execute_script(LATE)
    until(page, lambda: page.execute_script("return Boolean(window.release)"))
    press(page, "Load rot13")  # refused without a key, and the list is asked for again
    until(page, lambda: page.execute_script("return counts.length"))
    page.execute_script("release()")
    polls = page.execute_script("return counts.length")
    until(page, lambda: page.execute_script("return counts.length") > polls)
    assert set(page.execute_script("return counts")) == {str(len(ADAPTERS))}


def test_stop(page: Chrome) -> None:
    prompt = "hello world " * 12
    choose(page, "upper")
    page.find_element(By.CSS_SELECTOR, "[aria-label='Remove (base model)']").click()
    write(page, prompt)
    page.execute_script(STOP)
    page.find_element(By.ID, "run").click()
    until(page, lambda: "stopped" in footer(page, "upper"))
    assert 0 < len(answers(page)["upper"]) < len(prompt)
    assert not page.find_element(By.ID, "stop").is_enabled()


def test_of_many_answers_some_wait(page: Chrome) -> None:
    """Their time counts from their own start, and the table goes on."""
    compared = ("(base model)", *sorted(ADAPTERS - {"emoji"}))
    choose(page, *compared[1:])
    page.execute_script(HOLD)
    page.find_element(By.ID, "run").click()
    until(page, lambda: page.execute_script("return lists") >= 2)
    assert page.execute_script("return held") == 5
    assert [footer(page, name) for name in compared] == [""] * 5 + ["waiting"] * 2
    write(page, "another prompt")
    page.execute_script("release()")
    until(page, lambda: not page.find_elements(By.CSS_SELECTOR, "article[aria-busy=true]"))
    for name, text in ANSWERS.items():
        assert answers(page)[name] == text
    waits = [int(footer(page, name).split()[2]) for name in compared]
    assert min(waits[:5]) > 1000 > max(waits[5:])


def test_stop_ends_those_that_wait(page: Chrome) -> None:
    choose(page, *ADAPTERS)
    page.execute_script(HOLD)
    page.find_element(By.ID, "run").click()
    until(page, lambda: page.execute_script("return held") == 5)
    page.find_element(By.ID, "stop").click()
    page.execute_script("release()")
    for name in ("(base model)", *ADAPTERS):
        until(page, lambda name=name: footer(page, name) == "stopped")


def test_an_answer_that_breaks_off_is_told(page: Chrome) -> None:
    page.execute_script(CUT)
    page.find_element(By.ID, "run").click()
    until(page, lambda: "broke off" in footer(page, "(base model)"))


def test_the_keyboard_is_enough(page: Chrome) -> None:
    """From the prompt by Tab to the comparison, back, and on to what the table offers."""
    keys = lambda *pressed: ActionChains(page).send_keys(*pressed).perform()  # noqa: E731
    focused = lambda: page.switch_to.active_element  # noqa: E731
    page.find_element(By.ID, "prompt").send_keys(Keys.CONTROL, "a")
    keys("hello world", Keys.TAB)
    assert focused().get_attribute("id") == "choose"
    keys("upper", Keys.ENTER, Keys.TAB, Keys.TAB, Keys.ENTER)  # Add, then "Remove (base model)"
    keys(*[Keys.TAB] * 4)
    page.find_element(By.ID, "prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    until(page, lambda: answers(page) == {"upper": "HELLO WORLD"})
    page.find_element(By.ID, "filter").send_keys("json", Keys.TAB)
    for _ in range(20):
        if focused().get_attribute("aria-label") == "Load json":
            break
        keys(Keys.TAB)
    else:
        raise AssertionError("Tab does not reach the buttons of a row")


def test_an_unknown_adapter_is_told_in_its_place(page: Chrome) -> None:
    page.find_element(By.ID, "choose").send_keys("<b>nobody", Keys.ENTER)
    page.find_element(By.ID, "run").click()
    until(page, lambda: "is not known" in footer(page, "<b>nobody"))
    until(page, lambda: answers(page)["(base model)"] == "hello world")


def test_a_thousand_adapters(page: Chrome, page_url: str) -> None:
    """Few rows at a time, and nothing is built anew by the polls."""
    page.execute_cdp_cmd("Page.enable", {})
    hook = page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": MANY})
    try:
        page.get(page_url)
        until(page, lambda: page.find_element(By.ID, "count").text == "1000")
        assert len(names(page)) == 200
        first = page.find_element(By.CSS_SELECTOR, "#rows tr")
        polls = page.execute_script("return polls")
        until(page, lambda: page.execute_script("return polls") > polls + 1)
        page.find_element(By.ID, "more").click()
        assert len(names(page)) == 400
        first.find_element(By.TAG_NAME, "td")  # raises if the row was replaced
        page.find_element(By.ID, "filter").send_keys("team-3/")
        assert {name.split("/")[0] for name in names(page)} == {"team-3"}
    finally:
        page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", hook)
