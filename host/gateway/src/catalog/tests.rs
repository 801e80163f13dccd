use super::*;

fn tool(text: &str) -> Json {
    Json::parse(text.to_owned()).unwrap()
}

fn offer(tools: &[&str]) -> Offer {
    Offer::read(
        Section::Tools,
        tools.iter().map(|text| tool(text)).collect(),
    )
}

fn members(members: &[(&str, &str, bool)]) -> Vec<Member> {
    let member = |(name, group, trusted): &(&str, &str, bool)| Member {
        name: (*name).into(),
        group: (*group).into(),
        trusted: *trusted,
    };
    members.iter().map(member).collect()
}

fn catalog(of: &[(&str, &str, bool)]) -> Catalog {
    let catalog = Catalog::default();
    assert_eq!(catalog.set_members(members(of)), Changed::default());
    catalog
}

fn keep(catalog: &Catalog, member: &str, tools: &[&str]) -> Changed {
    catalog.keep(&member.into(), Section::Tools, offer(tools))
}

fn names(catalog: &Catalog) -> Vec<String> {
    let merged = catalog.merged(Section::Tools);
    merged
        .iter()
        .filter_map(|t| t.text_member("name"))
        .collect()
}

const READ_ONLY: &str = r#"{"name":"both","annotations":{"readOnlyHint":true}}"#;

fn two_groups() -> Catalog {
    let catalog = catalog(&[("one", "a", true), ("two", "b", false)]);
    let _ = keep(
        &catalog,
        "one",
        &[READ_ONLY, r#"{"name":"mine","vendor":1.0}"#],
    );
    let _ = keep(&catalog, "two", &[READ_ONLY]);
    catalog
}

#[test]
fn only_names_that_collide_get_their_group_in_front() {
    let catalog = two_groups();
    assert_eq!(names(&catalog), ["a__both", "mine", "b__both"]);
    assert_eq!(
        catalog.merged(Section::Tools)[1].as_bytes(),
        br#"{"name":"mine","vendor":1.0}"#
    );
    assert_eq!(
        catalog.route(Section::Tools, "mine"),
        Route::To("a".into(), "mine".into())
    );
    assert_eq!(
        catalog.route(Section::Tools, "b__both"),
        Route::To("b".into(), "both".into())
    );
    assert_eq!(
        catalog.route(Section::Tools, "both"),
        Route::Ambiguous(vec!["a__both".into(), "b__both".into()])
    );
    assert_eq!(catalog.route(Section::Tools, "none"), Route::Unknown);
}

#[test]
fn annotations_count_only_from_a_trusted_server() {
    let catalog = two_groups();
    assert_eq!(catalog.repeat_safety("a", "both"), RepeatSafety::ReadOnly);
    assert_eq!(catalog.repeat_safety("b", "both"), RepeatSafety::Unsafe);
    assert_eq!(catalog.repeat_safety("a", "mine"), RepeatSafety::Unsafe);
}

#[test]
fn a_tool_is_as_safe_as_the_least_safe_member_it_may_go_to() {
    let catalog = catalog(&[
        ("one", "g", true),
        ("two", "g", true),
        ("three", "g", false),
    ]);
    let _ = keep(&catalog, "one", &[READ_ONLY]);
    // Nothing is known of the third, and it is not trusted: a call may go there.
    assert_eq!(catalog.repeat_safety("g", "both"), RepeatSafety::Unsafe);
    // It turns out not to have the tool: no call will go there.
    let _ = keep(&catalog, "three", &[]);
    assert_eq!(catalog.repeat_safety("g", "both"), RepeatSafety::ReadOnly);
    let weaker = r#"{"name":"both","annotations":{"idempotentHint":true}}"#;
    let _ = keep(&catalog, "two", &[weaker]);
    assert_eq!(catalog.repeat_safety("g", "both"), RepeatSafety::Idempotent);
    let _ = keep(&catalog, "three", &[READ_ONLY]);
    assert_eq!(catalog.repeat_safety("g", "both"), RepeatSafety::Unsafe);
}

#[test]
fn a_group_lists_what_any_member_has_and_asks_only_those_that_have_it() {
    let catalog = catalog(&[("one", "g", true), ("two", "g", true), ("three", "g", true)]);
    let (common, extra) = (r#"{"name":"common"}"#, r#"{"name":"extra"}"#);
    assert_eq!(keep(&catalog, "two", &[common, extra]), Changed::default());
    assert_eq!(catalog.unsuited("g", "extra"), None);
    let _ = keep(&catalog, "one", &[common]);
    assert_eq!(names(&catalog), ["common", "extra"]);
    let unsuited = catalog.unsuited("g", "extra").unwrap();
    assert_eq!(unsuited.targets(), ["one".into()]);
    assert_eq!(unsuited.reason("one"), Some("it has no such tool"));
    // Of the third nothing is known.
    assert_eq!(unsuited.reason("three"), None);
    assert_eq!(catalog.unsuited("g", "common"), None);
}

#[test]
fn a_member_that_means_something_else_is_reported_once_and_not_asked() {
    let catalog = catalog(&[("one", "g", true), ("two", "g", true)]);
    let shown = r#"{"name":"t","inputSchema":{"required":["a"]}}"#;
    let other = r#"{"name":"t","inputSchema":{"required":["b"]}}"#;
    let _ = keep(&catalog, "one", &[shown]);
    let difference = Difference {
        group: "g".into(),
        tool: "t".into(),
        shown: "one".into(),
        other: "two".into(),
        part: "inputSchema",
    };
    assert_eq!(keep(&catalog, "two", &[other]).differences, [difference]);
    assert_eq!(keep(&catalog, "two", &[other]).differences, []);
    let unsuited = catalog.unsuited("g", "t").unwrap();
    assert_eq!(
        unsuited.reason("two"),
        Some("its inputSchema is not that of one, which callers know")
    );
    // The operator may say that it does not matter.
    let _ = catalog.set_mixed_schemas(true);
    assert_eq!(catalog.unsuited("g", "t"), None);
    let _ = catalog.set_mixed_schemas(false);
    // And it may be mended.
    let _ = keep(&catalog, "two", &[shown]);
    assert_eq!(catalog.unsuited("g", "t"), None);
    assert_eq!(keep(&catalog, "two", &[other]).differences.len(), 1);
}

#[test]
fn clients_are_told_where_a_list_they_were_given_changes() {
    let catalog = catalog(&[("one", "g", true), ("two", "g", true)]);
    let (a, b) = (r#"{"name":"a"}"#, r#"{"name":"b"}"#);
    let tools = || HashSet::from([Section::Tools]);
    // The first list is no change, unless somebody had to do without it.
    assert_eq!(keep(&catalog, "one", &[a]).sections, HashSet::new());
    assert_eq!(keep(&catalog, "one", &[a]).sections, HashSet::new());
    assert_eq!(keep(&catalog, "one", &[a, b]).sections, tools());
    assert_eq!(keep(&catalog, "two", &[a]).sections, HashSet::new());
    // A server that leaves takes what only it had along.
    let left = catalog.set_members(members(&[("two", "g", true)]));
    assert_eq!(left.sections, tools());
    assert_eq!(names(&catalog), ["a"]);
    let gone = catalog.set_members(Vec::new());
    assert_eq!(gone.sections, tools());
    // What leaves while it is asked is not kept.
    let _ = keep(&catalog, "two", &[a]);
    assert!(!catalog.knows("g", Section::Tools));
}

#[test]
fn clients_that_had_to_do_without_a_list_are_told_when_it_is_there() {
    let catalog = catalog(&[("one", "g", true)]);
    catalog.missed(&"g".into(), Section::Tools);
    let first = keep(&catalog, "one", &[r#"{"name":"a"}"#]);
    assert_eq!(first.sections, HashSet::from([Section::Tools]));
}
