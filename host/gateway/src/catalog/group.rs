//! What the members of one group offer, made into one list.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use backstop::Unsuited;
use backstop::call::RepeatSafety;
use backstop::mcp::ToolAnnotations;

use super::Section;
use super::mirror::Mirrored;
use super::schema::Signature;
use crate::envelope::Json;

/// One server of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: Arc<str>,
    pub(crate) group: Arc<str>,
    pub(crate) trusted: bool,
}

/// What one server lists.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offer {
    items: Arc<[Arc<Item>]>,
}

#[derive(Debug)]
struct Item {
    key: String,
    json: Json,
    /// Of tools only.
    tool: Option<(ToolAnnotations, Signature)>,
}

impl Offer {
    /// Reads the items of a list.
    pub(crate) fn read(section: Section, items: Vec<Json>) -> Self {
        let read = |json: Json| {
            let tool = (section == Section::Tools).then(|| {
                let hints = json.member("annotations");
                let hints = hints.and_then(|hints| hints.read().ok());
                (hints.unwrap_or_default(), Signature::of(&json))
            });
            Some(Arc::new(Item {
                key: json.text_member(section.key())?,
                json,
                tool,
            }))
        };
        Self {
            items: items.into_iter().filter_map(read).collect(),
        }
    }

    /// The same, with the items another has in the same bytes held once, and nothing held of the message
    /// the others came in but themselves.
    pub(super) fn beside(self, other: Option<&Self>) -> Self {
        let of_other = |key: &str| other?.items.iter().find(|item| item.key == key);
        let held = self.items.iter().map(|item| match of_other(&item.key) {
            Some(same) if same.json == item.json => same.clone(),
            _ => Arc::new(Item {
                key: item.key.clone(),
                json: item.json.alone(),
                tool: item.tool.clone(),
            }),
        });
        let items = held.collect();
        Self { items }
    }

    fn item(&self, key: &str) -> Option<&Item> {
        let item = self.items.iter().find(|item| item.key == key);
        item.map(|item| &**item)
    }
}

/// A tool by which two servers of a group mean two things.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Difference {
    pub(crate) group: Arc<str>,
    pub(crate) tool: String,
    /// Whose tool clients are shown.
    pub(crate) shown: Arc<str>,
    /// Whose tool is another.
    pub(crate) other: Arc<str>,
    /// `inputSchema` or `outputSchema`.
    pub(crate) part: &'static str,
}

/// A list of one group.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(super) items: Vec<(String, Json)>,
    keys: HashSet<String>,
    safety: HashMap<String, RepeatSafety>,
    mirrored: HashMap<String, Vec<Mirrored>>,
    unsuited: HashMap<String, Arc<Unsuited>>,
    pub(super) differences: HashSet<Difference>,
}

impl Listing {
    /// The union of what the members list; of an item that several have, the first member's is shown.
    ///
    /// A call of a tool may go to every member that has it and to every member nothing is known of.
    /// So the tool is as safe to repeat as the least safe of these makes it, and one that is not
    /// trusted makes it unsafe whatever the others say.
    pub(super) fn merge<'a>(
        members: impl Iterator<Item = (&'a Member, Option<&'a Offer>)> + Clone,
        mixed_schemas: bool,
    ) -> Self {
        let mut listing = Self::default();
        let offers = members
            .clone()
            .filter_map(|(member, offer)| Some((member, offer?)));
        for (first, offer) in offers {
            for item in &*offer.items {
                if !listing.keys.insert(item.key.clone()) {
                    continue;
                }
                listing.items.push((item.key.clone(), item.json.clone()));
                if let Some((_, signature)) = &item.tool {
                    let mirrored = Mirrored::of(&item.json);
                    if !mirrored.is_empty() {
                        listing.mirrored.insert(item.key.clone(), mirrored);
                    }
                    listing.add_tool(&item.key, first, signature, members.clone(), mixed_schemas);
                }
            }
        }
        listing
    }

    fn add_tool<'a>(
        &mut self,
        key: &str,
        first: &Member,
        shown: &Signature,
        members: impl Iterator<Item = (&'a Member, Option<&'a Offer>)>,
        mixed_schemas: bool,
    ) {
        let mut unsuited = Unsuited::default();
        let mut safety = RepeatSafety::ReadOnly;
        for (member, offer) in members {
            let theirs = match offer.map(|offer| offer.item(key)) {
                // Nothing is known of it: only its trust can speak.
                None => None,
                Some(None) => {
                    unsuited.add(member.name.clone(), "it has no such tool");
                    continue;
                }
                Some(Some(item)) => item.tool.as_ref(),
            };
            if let Some(part) = theirs.and_then(|(_, theirs)| shown.difference(theirs)) {
                self.differences.insert(Difference {
                    group: first.group.clone(),
                    tool: key.to_owned(),
                    shown: first.name.clone(),
                    other: member.name.clone(),
                    part,
                });
                if !mixed_schemas {
                    let reason = format!(
                        "its {part} is not that of {}, which callers know",
                        first.name
                    );
                    unsuited.add(member.name.clone(), reason);
                    continue;
                }
            }
            safety = match theirs {
                Some((hints, _)) => weaker(safety, hints.repeat_safety(member.trusted)),
                None if member.trusted => safety,
                None => RepeatSafety::Unsafe,
            };
        }
        self.safety.insert(key.to_owned(), safety);
        if !unsuited.is_empty() {
            self.unsuited.insert(key.to_owned(), Arc::new(unsuited));
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    pub(super) fn safety(&self, tool: &str) -> Option<RepeatSafety> {
        self.safety.get(tool).copied()
    }

    /// What the tool that is called wants in header fields.
    pub(super) fn mirrored(&self, params: &Json) -> Option<&[Mirrored]> {
        if self.mirrored.is_empty() {
            return None;
        }
        let mirrored = self.mirrored.get(&params.text_member("name")?);
        mirrored.map(Vec::as_slice)
    }

    pub(super) fn unsuited(&self, tool: &str) -> Option<Arc<Unsuited>> {
        self.unsuited.get(tool).cloned()
    }
}

fn weaker(one: RepeatSafety, other: RepeatSafety) -> RepeatSafety {
    use RepeatSafety::{Idempotent, ReadOnly, Unsafe};
    match (one, other) {
        (Unsafe, _) | (_, Unsafe) => Unsafe,
        (Idempotent, _) | (_, Idempotent) => Idempotent,
        _ => ReadOnly,
    }
}
