//! From tokens to a query whose names are not yet looked up.

use super::lexer::{Token, tokens};
use super::malformed;
use crate::sandbox::refusal::Refusal;

/// A query as it is written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Query {
    pub(crate) select: Vec<Item>,
    pub(crate) from: String,
    pub(crate) filter: Option<Condition>,
    pub(crate) group: Vec<String>,
    pub(crate) order: Vec<Order>,
    pub(crate) limit: Option<usize>,
    pub(crate) offset: usize,
}

/// One thing that is selected.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    /// A field or a path to a parent's field.
    Field(String),
    /// `FIELDS(ALL)`, `FIELDS(STANDARD)` or `FIELDS(CUSTOM)`.
    Fields { standard: bool, custom: bool },
    /// `COUNT()`.
    CountAll,
    /// An aggregate of a field.
    Aggregate { function: Function, path: String, alias: Option<String> },
    /// The records that refer to this one.
    Children(Box<Query>),
}

/// An aggregate function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Count,
    CountDistinct,
    Min,
    Max,
    Sum,
    Avg,
}

/// What to order by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    pub(crate) path: String,
    pub(crate) descending: bool,
    pub(crate) nulls_last: bool,
}

/// A comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Like,
}

/// The largest number of a date word: further than any date that a field can hold.
const RELATIVE_MAX: i64 = 1_000_000;

/// A literal as it is written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    Date(i64),
    DateTime(i64),
    /// A date word such as `TODAY` or `LAST_N_DAYS:3`, with its number.
    Relative(String, i64),
}

/// A condition.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Condition {
    And(Vec<Condition>),
    Or(Vec<Condition>),
    Not(Box<Condition>),
    Compare { path: String, operator: Operator, literal: Literal },
    In { path: String, literals: Vec<Literal>, negated: bool },
    InSelect { path: String, query: Box<Query>, negated: bool },
    Includes { path: String, values: Vec<String>, negated: bool },
}

/// Longest query that is looked at, in characters.
const MAX_LENGTH: usize = 100_000;
/// Deepest nesting of parentheses and subqueries.
const MAX_DEPTH: usize = 32;

/// Parses a query.
pub(crate) fn parse(text: &str) -> Result<Query, Refusal> {
    let mut parser = Parser::new(text)?;
    let query = parser.query()?;
    parser.end()?;
    Ok(query)
}

/// Parses what may stand after `WHERE`.
pub(crate) fn parse_condition(text: &str) -> Result<Condition, Refusal> {
    let mut parser = Parser::new(text)?;
    let condition = parser.condition()?;
    parser.end()?;
    Ok(condition)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn new(text: &str) -> Result<Self, Refusal> {
        if text.chars().count() > MAX_LENGTH {
            return Err(malformed(format!("SOQL statements cannot be longer than {MAX_LENGTH} characters.")));
        }
        Ok(Self { tokens: tokens(text)?, at: 0, depth: 0 })
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn unexpected(&self) -> Refusal {
        match self.peek() {
            None => malformed("unexpected end of the query"),
            Some(Token::Word(word)) => malformed(format!("unexpected token: '{word}'")),
            Some(Token::Text(text)) => malformed(format!("unexpected token: '{text}'")),
            Some(Token::Symbol(symbol)) => malformed(format!("unexpected token: '{symbol}'")),
            Some(other) => malformed(format!("unexpected token: {other:?}")),
        }
    }

    fn end(&self) -> Result<(), Refusal> {
        if self.peek().is_none() { Ok(()) } else { Err(self.unexpected()) }
    }

    fn at_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(w)) if w.eq_ignore_ascii_case(word))
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.at_word(word);
        self.at += usize::from(found);
        found
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Symbol(s)) if *s == symbol);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, symbol: &str) -> Result<(), Refusal> {
        if self.take(symbol) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn expect_word(&mut self, word: &str) -> Result<(), Refusal> {
        if self.take_word(word) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn name(&mut self) -> Result<String, Refusal> {
        match self.peek() {
            Some(Token::Word(word)) => {
                let word = word.clone();
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn number(&mut self) -> Result<usize, Refusal> {
        match self.peek() {
            Some(Token::Number(text)) => {
                let number = text.parse().map_err(|_| self.unexpected())?;
                self.at += 1;
                Ok(number)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn deeper(&mut self) -> Result<(), Refusal> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(malformed("the query is nested too deeply")) } else { Ok(()) }
    }

    fn query(&mut self) -> Result<Query, Refusal> {
        self.deeper()?;
        self.expect_word("SELECT")?;
        let mut select = vec![self.item()?];
        while self.take(",") {
            select.push(self.item()?);
        }
        self.expect_word("FROM")?;
        let from = self.name()?;
        self.no_alias()?;
        if self.take_word("USING") {
            self.expect_word("SCOPE")?;
            self.name()?;
        }
        let filter = if self.take_word("WHERE") { Some(self.condition()?) } else { None };
        if self.take_word("WITH") {
            self.name()?;
        }
        let group = if self.take_word("GROUP") { self.by_list()? } else { Vec::new() };
        let order = if self.take_word("ORDER") { self.order()? } else { Vec::new() };
        let limit = if self.take_word("LIMIT") { Some(self.number()?) } else { None };
        let offset = if self.take_word("OFFSET") { self.number()? } else { 0 };
        if self.take_word("FOR") {
            self.name()?;
        }
        if self.take_word("ALL") {
            self.expect_word("ROWS")?;
        }
        self.depth -= 1;
        Ok(Query { select, from, filter, group, order, limit, offset })
    }

    /// An alias of the object is not understood, and refused rather than mistaken.
    fn no_alias(&self) -> Result<(), Refusal> {
        const CLAUSES: [&str; 9] = ["USING", "WHERE", "WITH", "GROUP", "ORDER", "LIMIT", "OFFSET", "FOR", "ALL"];
        match self.peek() {
            Some(Token::Word(word)) if !CLAUSES.iter().any(|c| c.eq_ignore_ascii_case(word)) => Err(self.unexpected()),
            _ => Ok(()),
        }
    }

    fn item(&mut self) -> Result<Item, Refusal> {
        if self.take("(") {
            let query = self.query()?;
            self.expect(")")?;
            return Ok(Item::Children(Box::new(query)));
        }
        let name = self.name()?;
        if !self.take("(") {
            return Ok(Item::Field(name));
        }
        let function = match name.to_ascii_uppercase().as_str() {
            "FIELDS" => {
                let set = self.name()?.to_ascii_uppercase();
                self.expect(")")?;
                let (standard, custom) = (set != "CUSTOM", set != "STANDARD");
                let known = matches!(set.as_str(), "ALL" | "STANDARD" | "CUSTOM");
                return if known {
                    Ok(Item::Fields { standard, custom })
                } else {
                    Err(malformed("unknown FIELDS() group"))
                };
            }
            "COUNT" if self.take(")") => return Ok(Item::CountAll),
            "COUNT" => Function::Count,
            "COUNT_DISTINCT" => Function::CountDistinct,
            "MIN" => Function::Min,
            "MAX" => Function::Max,
            "SUM" => Function::Sum,
            "AVG" => Function::Avg,
            _ => return Err(malformed(format!("the function {name}() is not supported"))),
        };
        let path = self.name()?;
        self.expect(")")?;
        let alias = match self.peek() {
            Some(Token::Word(word)) if !word.eq_ignore_ascii_case("FROM") => Some(self.name()?),
            _ => None,
        };
        Ok(Item::Aggregate { function, path, alias })
    }

    fn by_list(&mut self) -> Result<Vec<String>, Refusal> {
        self.expect_word("BY")?;
        let mut names = vec![self.name()?];
        while self.take(",") {
            names.push(self.name()?);
        }
        Ok(names)
    }

    fn order(&mut self) -> Result<Vec<Order>, Refusal> {
        self.expect_word("BY")?;
        let mut orders = Vec::new();
        loop {
            let path = self.name()?;
            let descending = if self.take_word("DESC") {
                true
            } else {
                self.take_word("ASC");
                false
            };
            // Nulls come first going up, and last going down, unless the query says otherwise.
            let mut nulls_last = descending;
            if self.take_word("NULLS") {
                nulls_last = self.take_word("LAST");
                if !nulls_last {
                    self.expect_word("FIRST")?;
                }
            }
            orders.push(Order { path, descending, nulls_last });
            if !self.take(",") {
                return Ok(orders);
            }
        }
    }

    fn condition(&mut self) -> Result<Condition, Refusal> {
        self.deeper()?;
        let first = self.unary()?;
        let (word, mut parts) = if self.at_word("AND") {
            ("AND", vec![first])
        } else if self.at_word("OR") {
            ("OR", vec![first])
        } else {
            self.depth -= 1;
            return Ok(first);
        };
        while self.take_word(word) {
            parts.push(self.unary()?);
        }
        if self.at_word("AND") || self.at_word("OR") {
            // Mixing the two needs parentheses.
            return Err(self.unexpected());
        }
        self.depth -= 1;
        Ok(if word == "AND" { Condition::And(parts) } else { Condition::Or(parts) })
    }

    fn unary(&mut self) -> Result<Condition, Refusal> {
        if self.take_word("NOT") {
            self.deeper()?;
            let inner = self.unary()?;
            self.depth -= 1;
            return Ok(Condition::Not(Box::new(inner)));
        }
        if self.take("(") {
            let inner = self.condition()?;
            self.expect(")")?;
            return Ok(inner);
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Condition, Refusal> {
        let path = self.name()?;
        let negated = self.take_word("NOT");
        if self.take_word("IN") {
            return self.in_list(path, negated);
        }
        if negated {
            return Err(self.unexpected());
        }
        for (word, negated) in [("INCLUDES", false), ("EXCLUDES", true)] {
            if self.take_word(word) {
                let values = self.list()?.into_iter().map(|literal| match literal {
                    Literal::Text(text) => Ok(text),
                    _ => Err(malformed(format!("{word} takes strings"))),
                });
                return Ok(Condition::Includes { path, values: values.collect::<Result<_, _>>()?, negated });
            }
        }
        let operator = match self.next() {
            Some(Token::Symbol("=")) => Operator::Equal,
            Some(Token::Symbol("!=")) => Operator::NotEqual,
            Some(Token::Symbol("<")) => Operator::Less,
            Some(Token::Symbol("<=")) => Operator::LessEqual,
            Some(Token::Symbol(">")) => Operator::Greater,
            Some(Token::Symbol(">=")) => Operator::GreaterEqual,
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("LIKE") => Operator::Like,
            _ => {
                self.at -= 1;
                return Err(self.unexpected());
            }
        };
        Ok(Condition::Compare { path, operator, literal: self.literal()? })
    }

    fn in_list(&mut self, path: String, negated: bool) -> Result<Condition, Refusal> {
        let start = self.at;
        self.expect("(")?;
        if self.at_word("SELECT") {
            let query = Box::new(self.query()?);
            self.expect(")")?;
            return Ok(Condition::InSelect { path, query, negated });
        }
        self.at = start;
        Ok(Condition::In { path, literals: self.list()?, negated })
    }

    fn list(&mut self) -> Result<Vec<Literal>, Refusal> {
        self.expect("(")?;
        let mut literals = vec![self.literal()?];
        while self.take(",") {
            literals.push(self.literal()?);
        }
        self.expect(")")?;
        Ok(literals)
    }

    fn literal(&mut self) -> Result<Literal, Refusal> {
        let literal = match self.peek() {
            Some(Token::Text(text)) => Literal::Text(text.clone()),
            Some(Token::Number(text)) => Literal::Number(text.clone()),
            Some(Token::Date(days)) => Literal::Date(*days),
            Some(Token::DateTime(ms)) => Literal::DateTime(*ms),
            Some(Token::Word(word)) => match word.to_ascii_uppercase().as_str() {
                "NULL" => Literal::Null,
                "TRUE" => Literal::Bool(true),
                "FALSE" => Literal::Bool(false),
                _ if word.contains('.') => return Err(self.unexpected()),
                upper => Literal::Relative(upper.to_owned(), 0),
            },
            _ => return Err(self.unexpected()),
        };
        self.at += 1;
        if let Literal::Relative(word, _) = literal {
            let number = if self.take(":") { self.number()? } else { 0 };
            let number = i64::try_from(number).ok().filter(|n| *n <= RELATIVE_MAX);
            let beyond = || malformed(format!("{word} takes a number up to {RELATIVE_MAX}"));
            let number = number.ok_or_else(beyond)?;
            return Ok(Literal::Relative(word, number));
        }
        Ok(literal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_with_every_clause() {
        let query = parse(
            "select Id, Account.Name, (SELECT Id FROM Contacts) from Contact using scope everything where (Name like 'A%' \
             or Name != null) and not Id in ('a', 'b') group by Name order by Name desc nulls first, Id limit 10 offset 5 \
             for view",
        )
        .unwrap();
        assert_eq!(query.select.len(), 3);
        assert!(matches!(&query.filter, Some(Condition::And(parts)) if parts.len() == 2));
        assert_eq!((query.limit, query.offset), (Some(10), 5));
        assert!(query.order[0].descending && !query.order[0].nulls_last);
        assert_eq!(query.group, ["Name"]);
    }

    #[test]
    fn functions_and_date_words() {
        let query =
            parse("SELECT COUNT(Id) n, MAX(SystemModstamp) FROM Account WHERE CreatedDate > LAST_N_DAYS:3").unwrap();
        assert_eq!(
            query.select[0],
            Item::Aggregate { function: Function::Count, path: "Id".into(), alias: Some("n".into()) }
        );
        assert!(matches!(
            query.filter,
            Some(Condition::Compare { literal: Literal::Relative(ref word, 3), .. }) if word == "LAST_N_DAYS"
        ));
        assert_eq!(parse("SELECT COUNT() FROM Account").unwrap().select, [Item::CountAll]);
        assert_eq!(
            parse("SELECT FIELDS(STANDARD) FROM Account").unwrap().select,
            [Item::Fields { standard: true, custom: false }]
        );
    }

    #[test]
    fn mistakes_are_malformed_queries() {
        for bad in [
            "",
            "SELECT FROM Account",
            "SELECT Id",
            "SELECT Id FROM",
            "SELECT Id FROM Account WHERE",
            "SELECT Id FROM Account WHERE A = 1 AND B = 2 OR C = 3",
            "SELECT Id FROM Account WHERE Name = ",
            "SELECT Id FROM Account nonsense here",
            "SELECT Id FROM Account LIMIT x",
            "SELECT Id FROM Account WHERE Name NOT LIKE 'a'",
            "SELECT Id FROM Account WHERE CreatedDate > LAST_N_DAYS:1000001",
            "SELECT Id FROM Account WHERE CreatedDate > LAST_N_DAYS:9223372036854775807",
            "SELECT Id FROM Account WHERE CreatedDate > NEXT_N_YEARS:18446744073709551615",
        ] {
            assert_eq!(parse(bad).unwrap_err().code, "MALFORMED_QUERY", "{bad}");
        }
        let deep = format!("SELECT Id FROM Account WHERE {}A=1", "(".repeat(5000));
        assert!(parse(&deep).is_err());
    }
}
