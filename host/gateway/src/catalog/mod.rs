//! What the servers offer: the lists a client asks for, made into one, kept while a server is ill.
//!
//! The lists also say where a call goes (which group has the tool, and which of its members), and
//! whether it may be repeated (annotations of trusted servers).

mod group;
mod mirror;
mod schema;
mod section;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use backstop::Unsuited;
use backstop::call::RepeatSafety;
use reqwest::header::{HeaderName, HeaderValue};

pub(crate) use group::{Difference, Listing, Member, Offer};
pub(crate) use mirror::sent as sent_fields;
pub(crate) use section::Section;

use crate::envelope::Json;

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

/// What a new list changed.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "clients and operators want to know"]
pub(crate) struct Changed {
    /// The lists that are not what a client may have been given.
    pub(crate) sections: HashSet<Section>,
    /// Differences that were not there before.
    pub(crate) differences: Vec<Difference>,
}

type Lists = HashMap<Section, Arc<Listing>>;

/// What is read with every call.
#[derive(Debug, Default)]
struct View {
    /// Those it was made of.
    members: Arc<[Member]>,
    mixed_schemas: bool,
    /// In the order of the configuration.
    groups: Arc<[Arc<str>]>,
    lists: HashMap<Arc<str>, Lists>,
    /// Groups of which a member has shown that its tools are not those that are known.
    doubted: HashSet<Arc<str>>,
}

impl View {
    fn list(&self, group: &str, section: Section) -> Option<&Arc<Listing>> {
        self.lists.get(group)?.get(&section)
    }
}

/// What the view is made of.
#[derive(Debug, Default)]
struct Known {
    /// By group in the order of the configuration, within one the preferred first.
    members: Arc<[Member]>,
    offers: HashMap<(Arc<str>, Section), Offer>,
    /// Servers that have shown that their list of tools is out of date.
    doubted: HashSet<Arc<str>>,
    /// Lists that a client was not given because nobody could be asked.
    missed: HashSet<(Arc<str>, Section)>,
    mixed_schemas: bool,
}

/// The last good lists of every server, and of every group.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    view: ArcSwap<View>,
    known: Mutex<Known>,
}

impl Catalog {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The groups, in the order of the configuration.
    pub(crate) fn groups(&self) -> Arc<[Arc<str>]> {
        self.view.load().groups.clone()
    }

    pub(crate) fn has_member(&self, name: &str) -> bool {
        self.known()
            .members
            .iter()
            .any(|member| *member.name == *name)
    }

    /// Sets which servers there are: by group in the order of the configuration, within one the
    /// preferred first. What those that are gone offered is forgotten.
    pub(crate) fn set_members(&self, members: impl Into<Arc<[Member]>>) -> Changed {
        let members = members.into();
        let mut known = self.known();
        let names: HashSet<&Arc<str>> = members.iter().map(|member| &member.name).collect();
        known.offers.retain(|(of, _), _| names.contains(of));
        known.doubted.retain(|of| names.contains(of));
        known.members = members;
        self.renew(&mut known)
    }

    /// Speaks of the same servers as another, which it costs nothing to ask where they are the same
    /// already.
    pub(crate) fn follow(&self, other: &Self) {
        let (ours, theirs) = (self.view.load(), other.view.load());
        // Whoever hears of changes hears of them from the other.
        if !Arc::ptr_eq(&ours.members, &theirs.members) {
            let _ = self.set_members(theirs.members.clone());
        }
        if ours.mixed_schemas != theirs.mixed_schemas {
            let _ = self.set_mixed_schemas(theirs.mixed_schemas);
        }
    }

    /// Whether a tool by which the members of a group mean different things may be called on any of them.
    pub(crate) fn set_mixed_schemas(&self, allowed: bool) -> Changed {
        let mut known = self.known();
        known.mixed_schemas = allowed;
        self.renew(&mut known)
    }

    /// Keeps what a server lists.
    pub(crate) fn keep(&self, member: &Arc<str>, section: Section, offer: Offer) -> Changed {
        let mut known = self.known();
        // It may have left while it was asked.
        if known.members.iter().any(|there| there.name == *member) {
            known.offers.insert((member.clone(), section), offer);
        }
        if section == Section::Tools {
            known.doubted.remove(member);
        }
        self.renew(&mut known)
    }

    /// The same, with what is kept here already held once: clients that have lists of their own mostly
    /// have the same items in them.
    pub(crate) fn held(&self, member: &Arc<str>, section: Section, offer: Offer) -> Offer {
        let known = self.known();
        offer.beside(known.offers.get(&(member.clone(), section)))
    }

    /// Makes a server's list of tools be asked for again before the next call; until then it serves on.
    pub(crate) fn doubt_tools(&self, member: &Arc<str>) {
        let mut known = self.known();
        if known.doubted.insert(member.clone()) {
            // What clients are shown is the same yet.
            let _ = self.renew(&mut known);
        }
    }

    /// The servers of a group whose list is out of date.
    pub(crate) fn doubted(&self, group: &str, section: Section) -> Vec<Arc<str>> {
        if section != Section::Tools {
            return Vec::new();
        }
        let known = self.known();
        let members = known
            .members
            .iter()
            .filter(|member| *member.group == *group);
        let doubted = members.filter(|member| known.doubted.contains(&member.name));
        doubted.map(|member| member.name.clone()).collect()
    }

    /// Makes a server's lists be asked for again before they are used to find a way.
    pub(crate) fn forget(&self, member: &Arc<str>) {
        let mut known = self.known();
        known.offers.retain(|(of, _), _| of != member);
        // Clients are told by whoever knows that the lists changed.
        let _ = self.renew(&mut known);
    }

    /// Notes that a client was not given a group's list.
    pub(crate) fn missed(&self, group: &Arc<str>, section: Section) {
        self.known().missed.insert((group.clone(), section));
    }

    /// Makes the view anew.
    fn renew(&self, known: &mut Known) -> Changed {
        let mut view = View {
            members: known.members.clone(),
            mixed_schemas: known.mixed_schemas,
            ..View::default()
        };
        let mut groups: Vec<Arc<str>> = Vec::new();
        for member in known.members.iter() {
            if !groups.contains(&member.group) {
                groups.push(member.group.clone());
            }
        }
        let old = self.view.load();
        let mut changed = Changed::default();
        for group in &groups {
            for section in Section::ALL {
                let offers = known
                    .members
                    .iter()
                    .filter(|member| member.group == *group)
                    .map(|member| (member, known.offers.get(&(member.name.clone(), section))));
                let before = old.list(group, section);
                if offers.clone().all(|(_, offer)| offer.is_none()) {
                    // Whoever listed it has left.
                    if before.is_some_and(|before| !before.items.is_empty()) {
                        changed.sections.insert(section);
                    }
                    continue;
                }
                let listing = Listing::merge(offers, known.mixed_schemas);
                let told = known.missed.remove(&(group.clone(), section));
                if before.map_or(told, |before| before.items != listing.items) {
                    changed.sections.insert(section);
                }
                let is_new = |difference: &&Difference| {
                    before.is_none_or(|before| !before.differences.contains(*difference))
                };
                let new = listing.differences.iter().filter(is_new).cloned();
                changed.differences.extend(new);
                let lists = view.lists.entry(group.clone()).or_default();
                lists.insert(section, Arc::new(listing));
            }
        }
        for (group, lists) in &old.lists {
            if !groups.contains(group) {
                let shown = lists
                    .iter()
                    .filter(|(_, listing)| !listing.items.is_empty());
                changed.sections.extend(shown.map(|(section, _)| *section));
            }
        }
        let doubted = |member: &&Member| known.doubted.contains(&member.name);
        let doubted = known.members.iter().filter(doubted);
        view.doubted = doubted.map(|member| member.group.clone()).collect();
        view.groups = groups.into();
        self.view.store(Arc::new(view));
        changed
    }

    /// Whether it is known what a server lists.
    pub(crate) fn knows_of(&self, member: &Arc<str>, section: Section) -> bool {
        let known = self.known();
        known.offers.contains_key(&(member.clone(), section))
    }

    pub(crate) fn knows(&self, group: &str, section: Section) -> bool {
        self.view.load().list(group, section).is_some()
    }

    /// Whether a list is known and nothing speaks against it.
    pub(crate) fn is_current(&self, group: &str, section: Section) -> bool {
        let view = self.view.load();
        let doubted = section == Section::Tools && view.doubted.contains(group);
        !doubted && view.list(group, section).is_some()
    }

    /// The lists that are known of a group.
    pub(crate) fn sections(&self, group: &str) -> Vec<Section> {
        let view = self.view.load();
        let lists = view.lists.get(group);
        lists
            .map(|lists| lists.keys().copied().collect())
            .unwrap_or_default()
    }

    /// Every group's items as one list: a name two groups have gets its group in front.
    pub(crate) fn merged(&self, section: Section) -> Vec<Json> {
        let view = self.view.load();
        let of = |group: &Arc<str>| view.list(group, section);
        let mut owners: HashMap<&str, u32> = HashMap::new();
        for (key, _) in view
            .groups
            .iter()
            .filter_map(of)
            .flat_map(|listing| &listing.items)
        {
            *owners.entry(key).or_default() += 1;
        }
        let mut merged = Vec::new();
        let mut seen: HashSet<&str> = HashSet::new();
        for group in view.groups.iter() {
            for (key, item) in of(group).into_iter().flat_map(|listing| &listing.items) {
                if section.is_named() && owners.get(key.as_str()).is_some_and(|owners| *owners > 1)
                {
                    merged.push(
                        item.with_members(&[("name", Some(&Json::of(&prefixed(group, key))))]),
                    );
                } else if seen.insert(key) {
                    merged.push(item.clone());
                }
            }
        }
        merged
    }

    /// Which group a tool or prompt belongs to, and what it is called there.
    pub(crate) fn route(&self, section: Section, name: &str) -> Route {
        let view = self.view.load();
        if let [only] = &view.groups[..] {
            return Route::To(only.clone(), name.to_owned());
        }
        let has = |group: &Arc<str>, key: &str| {
            view.list(group, section)
                .is_some_and(|listing| listing.has(key))
        };
        let owners: Vec<&Arc<str>> = view
            .groups
            .iter()
            .filter(|group| has(group, name))
            .collect();
        match &owners[..] {
            [only] => Route::To((*only).clone(), name.to_owned()),
            [] => {
                let mut split = view.groups.iter().filter_map(|group| {
                    let rest = name.strip_prefix(&**group)?.strip_prefix("__")?;
                    has(group, rest).then(|| Route::To(group.clone(), rest.to_owned()))
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
        let view = self.view.load();
        if let [only] = &view.groups[..] {
            return Some(only.clone());
        }
        let keys = |group: &Arc<str>, section| {
            let listing = view.list(group, section);
            listing
                .into_iter()
                .flat_map(|listing| listing.items.iter().map(|(key, _)| key.as_str()))
        };
        let listed = view.groups.iter().find(|group| {
            let listing = view.list(group, Section::Resources);
            listing.is_some_and(|listing| listing.has(uri))
        });
        let templated = || {
            let begins = |template: &str| {
                let fixed = template.split('{').next().unwrap_or_default();
                (!fixed.is_empty() && uri.starts_with(fixed)).then_some(fixed.len())
            };
            let best = |group: &&Arc<str>| keys(group, Section::Templates).filter_map(begins).max();
            view.groups
                .iter()
                .filter(|group| best(group).is_some())
                .max_by_key(best)
        };
        let mut with_any = view
            .groups
            .iter()
            .filter(|group| keys(group, Section::Resources).next().is_some());
        listed
            .or_else(templated)
            .or_else(|| with_any.next().filter(|_| with_any.next().is_none()))
            .cloned()
    }

    /// What is known of a tool's repeat safety.
    pub(crate) fn repeat_safety(&self, group: &str, tool: &str) -> RepeatSafety {
        let view = self.view.load();
        let listing = view.list(group, Section::Tools);
        listing
            .and_then(|listing| listing.safety(tool))
            .unwrap_or_default()
    }

    /// The header fields a call of a tool is sent with; `None` where it wants none.
    pub(crate) fn fields(
        &self,
        group: &str,
        params: &Json,
    ) -> Option<Vec<(HeaderName, HeaderValue)>> {
        let view = self.view.load();
        let mirrored = view.list(group, Section::Tools)?.mirrored(params)?;
        let arguments = params.member("arguments");
        Some(mirror::fields(mirrored, arguments.as_ref()))
    }

    /// The servers of a group that must not be asked for a tool.
    pub(crate) fn unsuited(&self, group: &str, tool: &str) -> Option<Arc<Unsuited>> {
        self.view.load().list(group, Section::Tools)?.unsuited(tool)
    }
}

fn prefixed(group: &str, name: &str) -> String {
    format!("{group}__{name}")
}

#[cfg(test)]
mod tests;
