import Foundation

extension Graphs {
    /// Name and version of the system that this runs on; nil for one that bundles have no minimum for.
    public static var currentSystem: (name: String, version: OperatingSystemVersion)? {
        let version = ProcessInfo.processInfo.operatingSystemVersion
        #if os(macOS) || targetEnvironment(macCatalyst)
        return ("macOS", version)
        #elseif os(iOS)
        return ("iOS", version)
        #else
        return nil
        #endif
    }

    /// Checks that a system is new enough for the packages.
    ///
    /// - Throws: `ModditError.unsupported` if it is older than `minimumOS`, `ModditError.format` if that is no version.
    public func check(system name: String, version: OperatingSystemVersion) throws(ModditError) {
        guard let minimum = minimumOS[name] else { return }
        let found = [version.majorVersion, version.minorVersion, version.patchVersion]
        guard let wanted = Self.numbers(minimum) else {
            throw .format(
                "[manifest] graphs.minimum_os.\(name): '\(minimum)' is no version, want one such as 15.0; "
                    + "convert the checkpoint again")
        }
        guard !found.lexicographicallyPrecedes(wanted) else {
            throw .unsupported(
                "[manifest] the bundle needs \(name) \(minimum), this is "
                    + "\(name) \(found.map(String.init).joined(separator: ".")); update the system")
        }
    }

    /// Reads up to three numbers with dots between them; those left out are 0.
    private static func numbers(_ version: String) -> [Int]? {
        let parts = version.split(separator: ".", omittingEmptySubsequences: false)
        let isDigits = parts.allSatisfy { !$0.isEmpty && $0.utf8.allSatisfy { (48...57).contains($0) } }
        let numbers = parts.compactMap { Int($0) }
        guard isDigits, numbers.count == parts.count, (1...3).contains(parts.count) else { return nil }
        return numbers + Array(repeating: 0, count: 3 - numbers.count)
    }
}
