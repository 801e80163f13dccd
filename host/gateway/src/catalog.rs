//! What the servers offer: the lists a client asks for, made into one, kept while a server is ill.
//!
//! The lists also say where a call goes (which group has the tool) and whether it may be repeated
//! (annotations of a trusted server).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backstop::call::RepeatSafety;
use backstop::mcp::ToolAnnotations;

use crate::envelope::Json;

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Section {
    Tools,
    Prompts,
    Resources,
    Templates,
}

impl Section {
    pub(crate) fn of_method(method: &str) -> Option<Self> {
        [Self::Tools, Self::Prompts, Self::Resources, Self::Templates]
            .into_iter()
            .find(|s| s.method() == method)
    }

    pub(crate) fn method(self) -> &'static str {
        match self {
            Self::Tools => "tools/list",
            Self::Prompts => "prompts/list",
            Self::Resources => "resources/list",
            Self::Templates => "resources/templates/list",
        }
    }

    /// The member of the result that holds the list.
    pub(crate) fn member(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
        }
    }

    /// The capability a server that has the list declares.
    pub(crate) fn capability(self) -> &'static str {
        match self {
            Self::Templates => "resources",
            other => other.member(),
        }
    }

    /// The member of an item that tells it from others.
    fn key(self) -> &'static str {
        match self {
            Self::Tools | Self::Prompts => "name",
            Self::Resources => "uri",
            Self::Templates => "uriTemplate",
        }
    }

    /// Whether items of two groups with one key are told apart by a prefix. A URI is what it is.
    fn is_named(self) -> bool {
        matches!(self, Self::Tools | Self::Prompts)
    }
}

/// A list of one group.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    items: Vec<(String, Json)>,
    /// A server has shown that it is out of date.
    doubted: bool,
    safety: HashMap<String, RepeatSafety>,
}

impl Listing {
    /// Reads the items of a list; annotations count only where the server is trusted.
    pub(crate) fn read(section: Section, items: Vec<Json>, trusted: bool) -> Self {
        let mut listing = Self::default();
        for item in items {
            let Some(key) = item.text_member(section.key()) else {
                continue;
            };
            if section == Section::Tools {
                let hints: Option<ToolAnnotations> = item
                    .member("annotations")
                    .and_then(|hints| hints.read().ok());
                listing.safety.insert(
                    key.clone(),
                    hints.unwrap_or_default().repeat_safety(trusted),
                );
            }
            listing.items.push((key, item));
        }
        listing
    }
}

/// Where a name leads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To this group, under this name.
    To(Arc<str>, String),
    /// To more than one; these names would be clear.
    Ambiguous(Vec<String>),
    /// Nowhere known.
    Unknown,
}

type Lists = HashMap<(Arc<str>, Section), Arc<Listing>>;

/// The last good lists of every group.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// In the order of the configuration.
    pub(crate) groups: Vec<Arc<str>>,
    lists: Mutex<Lists>,
}

impl Catalog {
    pub(crate) fn new(groups: Vec<Arc<str>>) -> Self {
        Self {
            groups,
            lists: Mutex::default(),
        }
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn keep(&self, group: &Arc<str>, section: Section, listing: Listing) {
        self.lists()
            .insert((group.clone(), section), Arc::new(listing));
    }

    pub(crate) fn knows(&self, group: &Arc<str>, section: Section) -> bool {
        self.lists().contains_key(&(group.clone(), section))
    }

    /// Whether a list is known and nothing speaks against it.
    pub(crate) fn is_current(&self, group: &Arc<str>, section: Section) -> bool {
        let lists = self.lists();
        let listing = lists.get(&(group.clone(), section));
        listing.is_some_and(|listing| !listing.doubted)
    }

    /// Makes the list of tools be asked for again before the next call; until then it serves on.
    pub(crate) fn doubt_tools(&self, group: &Arc<str>) {
        if let Some(listing) = self.lists().get_mut(&(group.clone(), Section::Tools)) {
            Arc::make_mut(listing).doubted = true;
        }
    }

    /// Makes the lists be asked for again before they are used to find a way.
    pub(crate) fn forget(&self, group: &Arc<str>) {
        self.lists().retain(|(of, _), _| of != group);
    }

    /// Every group's items as one list: a name two groups have gets its group in front.
    pub(crate) fn merged(&self, section: Section) -> Vec<Json> {
        let lists = self.lists();
        let of = |group: &Arc<str>| lists.get(&(group.clone(), section));
        let mut owners: HashMap<&str, u32> = HashMap::new();
        for (key, _) in self
            .groups
            .iter()
            .filter_map(of)
            .flat_map(|listing| &listing.items)
        {
            *owners.entry(key).or_default() += 1;
        }
        let mut merged = Vec::new();
        let mut seen: HashMap<&str, ()> = HashMap::new();
        for group in &self.groups {
            for (key, item) in of(group).into_iter().flat_map(|listing| &listing.items) {
                if section.is_named() && owners.get(key.as_str()).is_some_and(|owners| *owners > 1)
                {
                    merged.push(
                        item.with_members(&[("name", Some(&Json::of(&prefixed(group, key))))]),
                    );
                } else if seen.insert(key, ()).is_none() {
                    merged.push(item.clone());
                }
            }
        }
        merged
    }

    /// Which group a tool or prompt belongs to, and what it is called there.
    pub(crate) fn route(&self, section: Section, name: &str) -> Route {
        if let [only] = &self.groups[..] {
            return Route::To(only.clone(), name.to_owned());
        }
        let lists = self.lists();
        let has = |group: &&Arc<str>, key: &str| {
            let listing = lists.get(&((*group).clone(), section));
            listing.is_some_and(|listing| listing.items.iter().any(|(known, _)| known == key))
        };
        let owners: Vec<&Arc<str>> = self
            .groups
            .iter()
            .filter(|group| has(group, name))
            .collect();
        match &owners[..] {
            [only] => Route::To((*only).clone(), name.to_owned()),
            [] => {
                let mut split = self.groups.iter().filter_map(|group| {
                    let rest = name.strip_prefix(&**group)?.strip_prefix("__")?;
                    has(&group, rest).then(|| Route::To(group.clone(), rest.to_owned()))
                });
                split.next().unwrap_or(Route::Unknown)
            }
            several => {
                Route::Ambiguous(several.iter().map(|group| prefixed(group, name)).collect())
            }
        }
    }

    /// Which group a resource belongs to: the one that lists it, else the one whose template begins
    /// like it, else the only one that has any resource.
    pub(crate) fn route_uri(&self, uri: &str) -> Option<Arc<str>> {
        if let [only] = &self.groups[..] {
            return Some(only.clone());
        }
        let lists = self.lists();
        let keys = |group: &Arc<str>, section| {
            let listing = lists.get(&(group.clone(), section));
            listing
                .into_iter()
                .flat_map(|listing| listing.items.iter().map(|(key, _)| key.as_str()))
        };
        let listed = self
            .groups
            .iter()
            .find(|group| keys(group, Section::Resources).any(|key| key == uri));
        let templated = || {
            let begins = |template: &str| {
                let fixed = template.split('{').next().unwrap_or_default();
                (!fixed.is_empty() && uri.starts_with(fixed)).then_some(fixed.len())
            };
            let best = |group: &&Arc<str>| keys(group, Section::Templates).filter_map(begins).max();
            self.groups
                .iter()
                .filter(|group| best(group).is_some())
                .max_by_key(best)
        };
        let mut with_any = self
            .groups
            .iter()
            .filter(|group| keys(group, Section::Resources).next().is_some());
        listed
            .or_else(templated)
            .or_else(|| with_any.next().filter(|_| with_any.next().is_none()))
            .cloned()
    }

    /// Whether a tool of a group may be repeated; unsafe where nobody trusted says otherwise.
    pub(crate) fn repeat_safety(&self, group: &Arc<str>, tool: &str) -> RepeatSafety {
        let listing = self.lists().get(&(group.clone(), Section::Tools)).cloned();
        listing
            .and_then(|listing| listing.safety.get(tool).copied())
            .unwrap_or_default()
    }
}

fn prefixed(group: &str, name: &str) -> String {
    format!("{group}__{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(text: &str) -> Json {
        Json::parse(text.to_owned()).unwrap()
    }

    fn two_groups() -> Catalog {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let catalog = Catalog::new(vec![a.clone(), b.clone()]);
        let both = r#"{"name":"both","annotations":{"readOnlyHint":true}}"#;
        let of_a = vec![tool(both), tool(r#"{"name":"mine","vendor":1.0}"#)];
        catalog.keep(
            &a,
            Section::Tools,
            Listing::read(Section::Tools, of_a, true),
        );
        catalog.keep(
            &b,
            Section::Tools,
            Listing::read(Section::Tools, vec![tool(both)], false),
        );
        catalog
    }

    #[test]
    fn only_names_that_collide_get_their_group_in_front() {
        let catalog = two_groups();
        let names: Vec<_> = catalog
            .merged(Section::Tools)
            .iter()
            .filter_map(|t| t.text_member("name"))
            .collect();
        assert_eq!(names, ["a__both", "mine", "b__both"]);
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
        assert_eq!(
            catalog.repeat_safety(&"a".into(), "both"),
            RepeatSafety::ReadOnly
        );
        assert_eq!(
            catalog.repeat_safety(&"b".into(), "both"),
            RepeatSafety::Unsafe
        );
        assert_eq!(
            catalog.repeat_safety(&"a".into(), "mine"),
            RepeatSafety::Unsafe
        );
    }
}
