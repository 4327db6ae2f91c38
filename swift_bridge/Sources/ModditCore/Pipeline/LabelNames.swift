import Foundation

// Port of moddit/conditioning.py, `Label.number`.

/// The names of a model's classes, and how a class is found by one.
struct LabelNames: Sendable, Hashable {
    private static let shown = 5  // names that a message lists
    private static let farthest = 0.6  // edits of a name that is still a suggestion, as a share of its characters

    /// Classes, without the one that stands for no class.
    let classes: Int
    /// Of every class in order, synonyms with commas between them, or of none.
    let names: [String]

    /// Finds a class by its number or by one of its names, in capitals or not; the last class of a name counts.
    ///
    /// - Throws: `ModditError.valueRange` if there is no such number, `ModditError.missing` if there is no such name;
    ///   the message lists the names that are nearest.
    func number(of text: String) throws(ModditError) -> Int {
        let wanted = Self.strip(text)
        if !wanted.isEmpty, wanted.utf8.allSatisfy({ (0x30...0x39).contains($0) }) {
            guard let number = Int(wanted.prefix(12)), number < classes else {
                throw .valueRange("[label] class \(text.quoted) out of range, want 0..\(classes - 1)")
            }
            return number
        }
        let synonyms = numbered()
        if let exact = synonyms.last(where: { $0.name == ExactText(wanted) }) { return exact.number }
        let folded = wanted.lowercased()
        if let alike = synonyms.last(where: { $0.name.text.lowercased() == folded }) { return alike.number }
        throw .missing("[label] no class is called \(text.quoted); \(advice(wanted, unique(synonyms.map(\.name))))")
    }

    /// Every name and the number of its class, in the order of the classes.
    private func numbered() -> [(name: ExactText, number: Int)] {
        names.enumerated().flatMap { number, names in
            names.split(separator: ",").map { (ExactText(Self.strip(String($0))), number) }
        }.filter { !$0.name.text.isEmpty }
    }

    private func advice(_ text: String, _ names: [ExactText]) -> String {
        let range = "0..\(classes - 1)"
        guard !names.isEmpty else { return "this model's classes have no names, want a number in \(range)" }
        let letters = Array(text.lowercased())
        let distances = names.map { name in
            let other = Array(name.text.lowercased())
            let most = Double(max(letters.count, other.count, 1))
            return (name: name, share: Double(Self.distance(letters, other)) / most)
        }
        let near = distances.filter { $0.share <= Self.farthest }.sorted { $0.share < $1.share }.map(\.name)
        let examples = (near.isEmpty ? names : near).prefix(Self.shown).map(\.text.quoted).joined(separator: ", ")
        return "want a number in \(range) or a name such as \(examples)"
    }

    /// Letters to insert, drop or replace to make one name of another.
    private static func distance(_ a: [Character], _ b: [Character]) -> Int {
        guard max(a.count, b.count) <= Bounds.name else { return max(a.count, b.count) }
        var row = Array(0...b.count)
        for (i, letter) in a.enumerated() {
            var diagonal = row[0]
            row[0] = i + 1
            for (j, other) in b.enumerated() {
                let replaced = diagonal + (letter == other ? 0 : 1)
                diagonal = row[j + 1]
                row[j + 1] = min(replaced, row[j] + 1, row[j + 1] + 1)
            }
        }
        return row[b.count]
    }

    private static func strip(_ text: String) -> String {
        text.trimmingCharacters(in: .whitespacesAndNewlines)
    }
}
