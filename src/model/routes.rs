//! What differs by the kind of text that a request names, such as query or document: a value a route.

use crate::error::Result;

/// A value for every kind of text; where there are no routes, one for all of them.
#[derive(Clone, Debug)]
pub struct Routes<T> {
    values: Vec<T>,
    /// Kinds with their places in `values`.
    named: Vec<(String, usize)>,
    /// For a text of no stated kind.
    unstated: Option<usize>,
    /// For a kind that is not in `named`.
    others: Option<usize>,
}

impl<T> Routes<T> {
    /// The same for every text.
    pub fn one(value: T) -> Self {
        Self { values: vec![value], named: Vec::new(), unstated: Some(0), others: Some(0) }
    }

    /// Asks for the value of every kind in `names`, of no stated kind (None) and of any other (an empty name); equal
    /// ones become one. None where no kind has a value.
    pub fn of(names: Vec<String>, value: impl Fn(Option<&str>) -> Option<T>) -> Option<Self>
    where
        T: PartialEq,
    {
        let mut values = Vec::new();
        let mut place = |kind: Option<&str>| {
            let value = value(kind)?;
            let known = values.iter().position(|known| *known == value);
            Some(known.unwrap_or_else(|| {
                values.push(value);
                values.len() - 1
            }))
        };
        let (unstated, others) = (place(None), place(Some("")));
        let named = names.into_iter().filter_map(|name| place(Some(&name)).map(|place| (name, place))).collect();
        (!values.is_empty()).then_some(Self { values, named, unstated, others })
    }

    /// The value for a text of no stated kind, else any.
    pub fn main(&self) -> &T {
        &self.values[self.unstated.unwrap_or(0)]
    }

    /// Every value, once.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.values.iter()
    }

    /// Whether the kind of text makes a difference, or must be one of some.
    pub fn differ(&self) -> bool {
        self.values.len() > 1 || self.unstated.is_none() || self.others.is_none()
    }

    /// Kinds that are known by name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(|(name, _)| name.as_str())
    }

    /// The value for a text of no stated kind, where that needs none.
    pub fn unstated(&self) -> Option<&T> {
        self.unstated.map(|place| &self.values[place])
    }

    /// The value for a kind, given under all its names, the first that is known.
    pub fn named<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<&T> {
        let known = |name: &str| self.named.iter().find(|(known, _)| known == name).map(|(_, place)| *place);
        names.filter_map(known).next().or(self.others).map(|place| &self.values[place])
    }

    /// The same routes to other values.
    pub fn map<U>(&self, f: impl FnMut(&T) -> Result<U>) -> Result<Routes<U>> {
        let values = self.values.iter().map(f).collect::<Result<_>>()?;
        Ok(Routes { values, named: self.named.clone(), unstated: self.unstated, others: self.others })
    }
}
